"""caption, recaption, caption_qa against a stub endpoint that answers, refuses, loops, truncates, fails and hangs.

Past 400 lines because every kind of fault of one endpoint is told here, on one stub and its fixtures.
"""

import io
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import zoo
from engine import build, contents, plans, run
from nextloom import pixels
from nextloom.curation.captions import caption_rules as rules
from nextloom.curation.captions.caption import Caption, Recaption
from nextloom.curation.captions.caption_qa import CaptionQa
from nextloom.curation.captions.chat import ChatClient, rest_of
from nextloom.curation.captions.chat_execution import ChatExecution
from nextloom.curation.captions.chat_format import Sampling
from nextloom.curation.captions.data_uri import data_uri
from nextloom.curation.captions.language import Languages
from nextloom.curation.captions.prompts import PROMPTS
from nextloom.curation.captions.vllm_chat import VllmChat, engine_arguments, sampling_arguments
from nextloom.errors import UserError
from nextloom.op import Row, error_value
from stub_endpoint import (
    FRENCH,
    LOOP,
    REFUSAL,
    TRUNCATED,
    StubEndpoint,
    caption_of,
    grey_png,
    instruction,
    picture_of,
)

BUMP = "the same reply gives another value: bump code_version"
FAULTS = {
    1: "refuse",
    2: "loop",
    3: "truncate",
    4: "french",
    5: "copy",
    6: "fail",
    7: "fail twice",
    8: "busy once",
    9: "hang",
    10: "no json",
    11: "no choices",
    12: "no message",
    13: "blank",
    14: "bad request",
    15: "drop",
    16: "filter",
    17: "elsewhere",
    18: "endless",
    19: "busy for an hour",
}


@pytest.fixture
def stub():
    with StubEndpoint() as stub:
        yield stub


def row(number: int, **source) -> Row:
    return Row(number, f"p{number:03d}.png", source, grey_png(number))


def ready(op: type[Caption], stub: StubEndpoint, *, how: dict | None = None, **fields) -> Caption:
    execution = {"endpoint": stub.url, "backoff": 0.01, "timeout": 20, "max_attempts": 3, **(how or {})}
    made = op(model="stub", execution=execution, **fields)
    made.setup()
    return made


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_each_fault_ends_as_it_should(stub):
    stub.behave = FAULTS
    op = ready(Caption, stub, how={"timeout": 3, "max_seconds": 4})
    numbers = list(range(22))
    out = dict(zip(numbers, op.process([row(n) for n in numbers]), strict=True))
    good = {n: value for n, value in out.items() if isinstance(value, dict)}
    assert all(list(value) == [c for c in value if c in op.columns().names] for value in good.values())
    assert all(set(value) == set(op.columns().names) for value in good.values())
    assert {n: value["text"] for n, value in good.items()} == {
        **{n: caption_of(n) for n in (0, 7, 8, 20, 21)},
        1: REFUSAL,
        2: LOOP.strip(),
        3: TRUNCATED,
        4: FRENCH,
        5: PROMPTS["detailed-v1"].user,
        16: "This picture cannot be described by the model.",
    }
    assert {n: value["attempts"] for n, value in good.items() if value["attempts"] > 1} == {7: 3, 8: 2}
    errors = {n: (e["type"], e["transient"]) for n, v in out.items() if n not in good for e in [error_value("c", v)]}
    assert errors == {
        6: ("HttpStatus", True),
        9: ("Timeout", True),
        10: ("BadReply", False),
        11: ("BadReply", False),
        12: ("BadReply", False),
        13: ("EmptyReply", False),
        14: ("HttpStatus", False),
        15: ("ConnectionError", True),
        17: ("HttpStatus", False),
        18: ("BadReply", False),
        19: ("HttpStatus", True),
    }
    kept = {n: v.values["attempts"] for n, v in out.items() if n not in good}
    assert kept == {6: 3, 9: 2, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1, 15: 3, 17: 1, 18: 1, 19: 1}
    assert stub.asked == {n: (good[n]["attempts"] if n in good else kept[n]) for n in numbers}
    assert (str(out[6]), out[6].detail) == ("500 Internal Server Error (after 3 attempts)", "out of memory")
    assert str(out[19]).endswith("(out of time)") and out[19].detail.endswith("come back later")
    assert out[13].values["finish_reason"] == "stop" and out[13].values["prompt"] == "detailed-v1"


def test_columns_say_what_was_asked_and_what_came_back(stub):
    op = ready(Caption, stub, prompt="brief-v1", max_tokens=77, temperature=0.5, seed=3)
    (values,) = op.process([row(20)])
    assert values == {
        "text": caption_of(20),
        "model": "stub@stub",
        "prompt": "brief-v1",
        "instruction": PROMPTS["brief-v1"].system + "\n" + PROMPTS["brief-v1"].user,
        "shown": None,
        "prompt_tokens": 120,
        "completion_tokens": len(caption_of(20).split()),
        "finish_reason": "stop",
        "attempts": 1,
        "refused": False,
    }, BUMP
    (body,) = stub.bodies
    assert {k: body[k] for k in ("model", "max_tokens", "temperature", "seed", "stream")} == {
        "model": "stub",
        "max_tokens": 77,
        "temperature": 0.5,
        "seed": 3,
        "stream": False,
    }
    assert body["messages"][0] == {"role": "system", "content": PROMPTS["brief-v1"].system}
    assert picture_of(body) == ("image/png", grey_png(20))


def test_answers_land_on_their_rows_in_whatever_order_they_come(stub):
    numbers = list(range(30, 60))
    stub.behave = {n: "late" for n in numbers[::3]}
    out = ready(Caption, stub).process([row(n) for n in numbers])
    assert stub.order != numbers and sorted(stub.order) == numbers
    assert [value["text"] for value in out] == [caption_of(n) for n in numbers]


def test_requests_in_flight_reach_the_bound_and_not_more():
    with StubEndpoint(gate=7) as stub:
        op = ready(Caption, stub, how={"concurrency": 7})
        out = op.process([row(n) for n in range(28)])
    assert [value["text"] for value in out] == [caption_of(n) for n in range(28)]
    assert stub.peak == 7


def test_retry_after_is_heeded(stub):
    stub.behave = {1: "busy once"}
    op = ready(Caption, stub)
    start = time.monotonic()
    (value,) = op.process([row(1)])
    assert value["attempts"] == 2 and time.monotonic() - start >= 1  # the back-off alone is 0.02 s
    assert rest_of({"Retry-After": "7"}, 0) == 7
    assert rest_of({"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}, 20) == 40
    assert rest_of({"Retry-After": "soon"}, 0) == rest_of({}, 0) == 0


def test_waits_double_and_are_spread_by_the_key(stub):
    client = ChatClient(ChatExecution(endpoint=stub.url, backoff=2), Sampling("m", 1, 0, 0))
    waits = [client._wait("a", n, 0) for n in range(1, 12)]
    assert all(0.5 <= wait / min(60, 2 * 2**n) <= 1.5 for n, wait in enumerate(waits))
    assert waits == [client._wait("a", n, 0) for n in range(1, 12)]
    assert len({client._wait(str(key), 1, 0) for key in range(50)}) == 50


def test_the_key_is_sent_and_told_to_nobody(stub, monkeypatch):
    monkeypatch.setenv("STUB_KEY", "s3cret")
    stub.behave = {1: "bad request"}
    op = ready(Caption, stub, how={"api_key_env": "STUB_KEY"})
    (error,) = op.process([row(1)])
    assert stub.keys == {"Bearer s3cret"}
    assert "your key is Bearer ***" in error.detail and "s3cret" not in repr(op) + str(error) + error.detail
    monkeypatch.delenv("STUB_KEY")
    with pytest.raises(UserError, match=r"STUB_KEY is not set[\s\S]*export STUB_KEY"):
        op.setup()


def test_an_address_where_nobody_is_stops_the_step():
    op = Caption(model="m", execution={"endpoint": f"http://127.0.0.1:{free_port()}/v1", "backoff": 0})
    with pytest.raises(UserError, match=r"cannot reach http://127.0.0.1:\d+/v1: ClientConnectorError[\s\S]*next: "):
        op.setup()


def test_a_server_that_goes_leaves_transient_errors():
    with StubEndpoint() as stub:
        op = ready(Caption, stub)
    errors = [error_value("caption", e) for e in op.process([row(1), row(2)])]
    assert [(e["type"], e["transient"]) for e in errors] == [("ConnectionError", True)] * 2


def test_broken_pictures_cost_no_request(stub, tmp_path):
    broken = [write(tmp_path).read_bytes() for write in (zoo.truncated_jpeg, zoo.empty_file, zoo.text_as_jpeg)]
    rows = [Row(i, str(i), {}, raw) for i, raw in enumerate(broken)]
    out = ready(Caption, stub).process([*rows, row(3)])
    names = [type(error).__name__ for error in out[:3]]
    assert names == ["BrokenPicture", "NotAPicture", "NotAPicture"]
    assert out[3]["text"] == caption_of(3) and stub.asked == {3: 1}


@pytest.mark.parametrize("write", zoo.READABLE)
def test_pictures_are_sent_as_they_are_or_as_everything_else_sees_them(write, tmp_path):
    raw = write(tmp_path).read_bytes()
    sent = {"max_side": 1536, "max_bytes": 2**22}
    body = {"messages": [{"content": [{"type": "image_url", "image_url": {"url": data_uri(raw, None, **sent)}}]}]}
    kind, data = picture_of(body)
    seen = pixels.decode(raw).astype(int)
    if write.__name__ in ("good_jpeg", "good_png", "good_webp", "chinese_name", "spaced_name"):
        assert data == raw
    if data == raw:
        image = Image.open(io.BytesIO(raw))
        assert kind == f"image/{image.format.lower()}"
        assert np.array_equal(np.asarray(image.convert("RGB")), seen), "a reader that knows nothing sees the same"
    else:
        assert kind == "image/jpeg"
        assert np.abs(pixels.decode(data) - seen).mean() < 4


def test_large_pictures_are_brought_down_and_frames_are_their_own(tmp_path):
    def sent(raw: bytes, frame: int | None = None, **limits) -> Image.Image:
        uri = data_uri(raw, frame, **{"max_side": 100, "max_bytes": 2**20, **limits})
        return picture_of({"messages": [{"content": [{"type": "image_url", "image_url": {"url": uri}}]}]})[1]

    wide = zoo.encoded(Image.new("RGB", (400, 100), zoo.RED), "PNG")
    assert Image.open(io.BytesIO(sent(wide))).size == (100, 25)
    assert sent(wide, max_side=400) == wide
    heavy = sent(wide, max_side=400, max_bytes=10)
    assert heavy.startswith(b"\xff\xd8") and Image.open(io.BytesIO(heavy)).size == (400, 100)
    raw = zoo.animated_gif(tmp_path).read_bytes()
    for frame, colour in enumerate((zoo.RED, zoo.BLUE, zoo.WHITE)):
        assert np.abs(pixels.decode(sent(raw, frame)).astype(int) - colour).max() < 6


def test_recaption_shows_the_alt_text(stub):
    op = ready(Recaption, stub, max_alt_chars=30)
    rows = [row(1, caption="a cat {alt} on a mat"), row(2), row(3, caption="x" * 31), row(4, caption="a dog")]
    out = op.process(rows)
    assert [out[0]["shown"], out[3]["shown"]] == ["a cat {alt} on a mat", "a dog"]
    assert out[3]["prompt"] == "rewrite-v1" and "a dog" not in out[3]["instruction"]
    assert str(out[1]).startswith("no alt text in source column 'caption'")
    assert (str(out[2]), out[2].detail) == ("the alt text is longer than max_alt_chars, 30", "31 characters")
    assert {n for n in stub.asked} == {1, 4}
    texts = [instruction(body) for body in stub.bodies]
    assert sum("<text>\na dog\n</text>" in text for text in texts) == 1
    assert sum("<text>\na cat {alt} on a mat\n</text>" in text for text in texts) == 1


# ---- rules

LANGUAGES = Languages()


def qa(text: str, *, finish: str | None = "stop", shown: str | None = None, refused: bool = False, **fields) -> set:
    """Names of the faults of a caption."""
    reads = {"text": text, "instruction": PROMPTS["detailed-v1"].instruction(), "shown": shown}
    reads |= {"finish_reason": finish, "refused": refused}
    op = CaptionQa(reads=("caption",), **fields)
    op._languages = LANGUAGES
    values = op.measure(Row(0, "x", reads={"caption": reads}))
    assert set(values) == set(op.columns().names)
    return {name for name, value in values.items() if value is True}


GOOD = (
    "A brown dog lies on a green sofa beside two blue cushions. Behind it stands a white bookshelf with rows of books "
    "and a small lamp. Soft daylight falls from a window on the left, and the picture is a sharp colour photograph.",
    "Cat.",
    'A sign that reads "I\'m sorry, we cannot help" hangs on a closed wooden door of an old shop.',
    "The image shows the words 'NO NO NO' in red paint on a grey wall of the building.",
    "An elderly man from São Paulo with a café au lait in his hand sits in front of the Musée d'Orsay.",
    "Unfortunate weather: a wet street at night with the lights of cars and people under umbrellas.",
    "Snow-capped mountains, turquoise lake, pine trees, clear blue sky",
    "Vintage poster, art deco style, woman, champagne glass, gold, black",
    "Golden retriever puppy, grass, sunshine, shallow depth of field",
    "Sunset, beach, palm trees, silhouette, orange sky, ocean waves, vacation, tropical",
    "Close-up portrait, elderly man, white beard",
    "Two cats.",
)


@pytest.mark.parametrize("text", GOOD)
def test_a_good_caption_has_no_fault(text):
    assert qa(text) == set(), BUMP


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (REFUSAL, "refusal"),
        ("I cannot assist with that request.", "refusal"),
        ("I’m unable to view the picture you mention.", "refusal"),
        ("As an AI language model, I do not have eyes.", "refusal"),
        ("Please provide the image you would like me to describe.", "refusal"),
        ("Unfortunately, I can't identify the person in this picture.", "refusal"),
        ("There is no image attached to the message.", "refusal"),
        (LOOP, "loop"),
        ("A red red red red red red car on the road.", "loop"),
        ("A cat sits on the mat. A dog lies on the rug. " * 3, "loop"),
        (GOOD[0] + " It is a dog and it is on the sofa." * 12, "loop"),
        (FRENCH, "wrong_language"),
        ("Der Hund liegt auf dem Sofa und das Licht fällt durch ein Fenster auf den Boden.", "wrong_language"),
        ("Собака лежит на диване у окна.", "wrong_language"),
        ("En hund ligger på en grøn sofa, og der er en lampe på et bord ved vinduet.", "wrong_language"),
        ("Een man in een blauwe jas is op straat en er is een hond bij de deur.", "wrong_language"),
        ("一只狗躺在沙发上,窗外有光。", "wrong_language"),
        ("Egy piros autó áll az út szélén, mögötte egy régi ház.", "wrong_language"),
        ("a kutya a kertben a fa alatt a macska mellett alszik", "wrong_language"),
        ("Punainen auto seisoo vanhan talon edessä meren rannalla.", "wrong_language"),
        ("Un chat noir est assis sur une chaise.", "wrong_language"),
        ("Pies leży na kanapie obok okna, a za nim stoi regał z książkami i lampą.", "wrong_language"),
        (PROMPTS["detailed-v1"].user, "copies_prompt"),
        (
            "Sure. Name the main subject first, then its parts, colours, material and posture. " + GOOD[0],
            "copies_prompt",
        ),
    ],
)
def test_each_fault_is_seen_and_no_other(text, fault):
    assert qa(text) == {fault}, BUMP


def test_faults_that_the_server_tells(tmp_path):
    assert qa(TRUNCATED, finish="length") == {"truncated"}
    assert qa(TRUNCATED, finish=None) == {"truncated"}
    assert qa(GOOD[0], finish=None) == qa(TRUNCATED) == set()
    assert qa("It is not for me to say.", refused=True) == {"refusal"}


def test_copying_the_alt_text_is_told_from_using_it():
    alt = "Red vintage car parked at the beach of Nice in summer"
    assert qa("A red vintage car parked at the beach of Nice in summer.", shown=alt) == {"copies_prompt"}
    assert qa("Red vintage car", shown="red vintage car | buy now") == {"copies_prompt"}
    used = "An old red car stands at the beach of Nice. Behind it people swim in the blue sea under a clear sky."
    assert qa(used, shown=alt) == set()


def test_chinese_captions():
    text = "一只棕色的狗躺在绿色的沙发上,旁边有两个蓝色靠垫。后面是白色书架,左侧窗户透进柔和的光线。"
    assert qa(text, language="zh") == set()
    assert qa(text, language=None) == set()
    assert qa("很抱歉,我无法描述这张图片。", language="zh") == {"refusal"}
    assert qa("红色的车红色的车红色的车红色的车。", language="zh") == {"loop"}
    assert qa("犬がソファの上に寝ています。", language="zh") == {"wrong_language"}
    assert qa(GOOD[0], language="zh") == {"wrong_language"}


def test_measures_are_what_they_say():
    assert rules.words("It's a snow-white Cat, 两只猫!") == ["it's", "a", "snow", "white", "cat", "两", "只", "猫"]
    assert rules.repeated_share(list("abcdabcd")) == pytest.approx(1 / 5)
    assert rules.repeated_share(list("abc")) == 0
    assert rules.copied_share(list("xabcy"), list("qabcz"), 3) == pytest.approx(3 / 5)
    assert rules.copied_share(list("ab"), list("zab"), 5) == 1
    assert rules.copied_share([], ["a"], 5) == 0


# ---- vLLM


class Engine:
    """Stands in for ``vllm.LLM``: says which picture it saw, refuses those numbered in `cannot`."""

    def __init__(self, cannot=()) -> None:
        self.cannot, self.asked = cannot, []

    def chat(self, conversations, parameters, use_tqdm):
        numbers = [picture_of({"messages": c})[1] for c in conversations]
        numbers = [int(pixels.decode(raw)[0, 0, 0]) for raw in numbers]
        if set(numbers) & set(self.cannot):
            raise ValueError("the prompt is longer than the maximum model length")
        self.asked += conversations
        return [
            SimpleNamespace(
                prompt_token_ids=[0] * 9,
                outputs=[SimpleNamespace(text=caption_of(n), token_ids=[0] * 5, finish_reason="stop")],
            )
            for n in numbers
        ]


def test_both_backends_send_the_same_messages_and_store_the_same_columns(stub):
    served = ready(Caption, stub)
    local = Caption(model="stub")
    engine = Engine(cannot={7})
    local._chat = VllmChat(engine, None, "stub")
    numbers = [5, 6, 7, 8]
    rows = [row(n) for n in numbers] + [Row(99, "x", {}, b"no picture")]
    first, second = served.process(rows[:4]), local.process(rows)
    by_number = {picture_of(body)[1]: body["messages"] for body in stub.bodies}
    assert engine.asked == [by_number[grey_png(n)] for n in (5, 6, 8)]
    assert [v["text"] for v in (second[0], second[1], second[3])] == [caption_of(n) for n in (5, 6, 8)]
    assert set(second[0]) == set(first[0]) and second[0]["completion_tokens"] == 5
    assert (second[2].kind, second[2].values["attempts"]) == ("BadRequest", 1)
    assert isinstance(second[4], pixels.NotAPicture)


def test_vllm_arguments():
    how = {"backend": "vllm", "model_path": "/models/q", "num_gpus": 2, "engine": {"max_model_len": 8192, "seed": 5}}
    op = Caption(model="q", execution=how, max_tokens=9, temperature=0.2, seed=1)
    assert engine_arguments(op.execution, op.sampling()) == {
        "model": "/models/q",
        "served_model_name": "q",
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "limit_mm_per_prompt": {"image": 1},
        "seed": 5,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "max_model_len": 8192,
    }
    assert sampling_arguments(op.sampling()) == {"max_tokens": 9, "temperature": 0.2, "seed": 1}
    assert op.identity() == Caption(model="q", max_tokens=9, temperature=0.2, seed=1).identity()


def test_vllm_is_refused_where_it_cannot_run(tmp_path):
    import importlib.util

    op = Caption(model="q", execution={"backend": "vllm", "model_path": str(tmp_path), "num_gpus": 1})
    expected = "sees 0" if importlib.util.find_spec("vllm") else "vLLM is not installed where this worker runs"
    with pytest.raises(UserError, match=rf"{expected}[\s\S]*execution.backend to endpoint"):
        op.setup()


# ---- recipes


def test_plans_refuse_what_cannot_run(tmp_path):
    def refused(match: str, op: str = "caption", **fields) -> None:
        with pytest.raises(UserError, match=match):
            build(tmp_path, {"c": {"op": op, "model": "m", **fields}})

    here = {"execution": {"endpoint": "http://127.0.0.1:1/v1"}}
    refused(r"steps.c.execution.endpoint: no endpoint[\s\S]*--set steps.c.execution.endpoint=http")
    refused("steps.c.execution.endpoint: no address", execution={"endpoint": "127.0.0.1:8000"})
    refused(
        "steps.c.execution.api_key_env: String should match",
        execution={"api_key_env": "sk-123", "endpoint": "http://h"},
    )
    refused("carries no password", execution={"endpoint": "http://me:secret@host/v1"})
    refused("leave out /chat/completions", execution={"endpoint": "http://host/v1/chat/completions"})
    refused("steps.c.execution.model_path", execution={"backend": "vllm"})
    refused("whole GPUs", execution={"backend": "vllm", "model_path": "m", "num_gpus": 0.5})
    refused("no built-in prompt 'detailed'; did you mean 'detailed-v1'", prompt="detailed", **here)
    refused("that is for recaption", prompt="rewrite-v1", **here)
    refused("has no {alt}", op="recaption", prompt="brief-v1", **here)
    steps = {"photo": {"op": "image_stats"}, "qa": {"op": "caption_qa", "reads": ["photo"]}}
    with pytest.raises(UserError, match=r"steps.qa.reads: 'photo' has no column .*text"):
        build(tmp_path, steps)


def write_rows(folder, numbers) -> None:
    folder.mkdir()
    for number in numbers:
        (folder / f"p{number:03d}.png").write_bytes(grey_png(number))
        (folder / f"p{number:03d}.txt").write_text(f"alt text {number}")


def test_a_run_accounts_for_every_row_and_moving_the_endpoint_captions_nothing(ray_local, tmp_path, stub):
    write_rows(tmp_path / "pics", range(24))
    stub.behave, stub.gate = FAULTS, 5

    def recipe(url: str = stub.url, qa: dict | None = None, **caption):
        how = {"endpoint": url, "backoff": 0.01, "timeout": 3, "max_attempts": 3, "max_seconds": 4, "concurrency": 5}
        steps = {
            "caption": {"op": "caption", "model": "stub", "execution": how, **caption},
            "qa": {"op": "caption_qa", "reads": ["caption"], **(qa or {})},
            "keep": {
                "op": "select",
                "where": "not qa.refusal and not qa.loop and not qa.truncated and not qa.wrong_language "
                "and not qa.copies_prompt",
            },
        }
        return build(tmp_path, steps)

    first, dataset = recipe()
    result = run(first, dataset)
    assert result["caption"] == {"rows": 24, "values": 13, "errors": 11, "done": 24}
    assert result["keep"] == {"rows": 24, "kept": 7, "rejected": 6, "failed": 11, "done": 24}
    stored = contents(first, dataset)
    assert {r["key"]: r["reason"] for r in stored["keep"] if r["verdict"] == "rejected"} == {
        "p001.png": "not qa.refusal",
        "p002.png": "not qa.loop",
        "p003.png": "not qa.truncated",
        "p004.png": "not qa.wrong_language",
        "p005.png": "not qa.copies_prompt",
        "p016.png": "not qa.refusal",
    }
    texts = {r["key"]: r["text"] for r in stored["caption"]}
    assert all(texts[f"p{n:03d}.png"] == caption_of(n) for n in (0, 7, 8, 20, 21, 22, 23))
    assert {r["key"]: r["attempts"] for r in stored["caption"] if r["error"]}["p006.png"] == 3

    assert stub.peak == 5

    asked = stub.asked.total()
    with StubEndpoint() as other:
        moved, _ = recipe(other.url)
        assert {p.state for p in plans(moved, dataset).values()} == {"fresh"}
        assert run(moved, dataset)["caption"]["done"] == 0
        assert other.asked.total() == 0 and stub.asked.total() == asked
        retried = run(moved, dataset, retry_errors=True)
        assert retried["caption"]["done"] == retried["qa"]["done"] == 11
        assert retried["keep"]["failed"] == 0 and sorted(other.asked) == [6, *range(9, 16), *range(17, 20)]
    state = plans(recipe(model="better")[0], dataset)["caption"]
    assert (state.state, state.todo, state.cause) == ("stale", 24, "CONFIG model stub -> better")
    state = plans(recipe(prompt="brief-v1")[0], dataset)["caption"]
    assert (state.state, state.todo) == ("stale", 24) and state.cause.startswith("CONFIG prompt detailed-v1 ")
    own = {"id": "detailed-v1", "user": "Another text under the same id."}
    assert plans(recipe(prompt=own)[0], dataset)["caption"].todo == 24
    states = plans(recipe(qa={"loop_share": 0.5})[0], dataset)
    assert (states["caption"].state, states["qa"].todo) == ("fresh", 24)


def test_a_wrong_address_stops_the_run_before_a_row_is_touched(ray_local, tmp_path):
    write_rows(tmp_path / "pics", range(3))
    how = {"endpoint": f"http://127.0.0.1:{free_port()}/v1", "backoff": 0.0, "max_attempts": 2}
    recipe, dataset = build(tmp_path, {"again": {"op": "recaption", "model": "m", "execution": how}})
    with pytest.raises(UserError, match="cannot reach http"):
        run(recipe, dataset)
    assert plans(recipe, dataset)["again"].todo == 3


def test_importing_the_ops_imports_nothing_heavy():
    code = "import sys; import nextloom.curation.captions.caption, nextloom.curation.captions.caption_qa"
    code += "; print([m for m in ('aiohttp', 'torch', 'ray', 'vllm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
