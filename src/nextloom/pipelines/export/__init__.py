"""Taking the data out: the rows of a release, with their original bytes, in the formats that others read.

`rows` says what is exported, `webdataset`, `parquet`, `hugging_face` and `keys` how, `job` does it, `place` keeps the
folder whole.
"""

from nextloom.pipelines.export.job import FORMATS, Options, Summary, export
from nextloom.pipelines.export.place import check_apart
from nextloom.pipelines.export.rows import Chosen, find_release, rows_of

__all__ = ["FORMATS", "Chosen", "Options", "Summary", "check_apart", "export", "find_release", "rows_of"]
