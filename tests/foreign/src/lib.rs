//! Nothing: what is verified stands in `tests/`.
