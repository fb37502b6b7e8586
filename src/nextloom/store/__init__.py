"""The store: a column store with fingerprints, on Delta tables and small JSON documents."""
