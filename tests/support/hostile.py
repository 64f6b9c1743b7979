"""Checkpoint folders that somebody has changed to do harm: which changes there are, and how they are made.

A change is a list of plain JSON values, `[what, file, ...]`, so that it can be drawn by hypothesis, sent to another
process, printed, and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

CONFIG, INDEX, GENERATION, CARD = "config.json", "model.safetensors.index.json", "generation_config.json", "README.md"
LOCK, COMMITTED, SAVING, REMOVALS = ".eidetic.lock", ".eidetic-commit", ".eidetic-save", ".eidetic-removals"

Change = list[Any]
Document = Any

# What `json.dumps` can not write, by what stands for it in a change.
DEEP, LONG, MANY, LITERAL = "$deep", "$long", "$many", "$literal"

NUMBERS = [
    -1, 0, 1, 2, 3, 7, 63, 10**4, 10**6, 10**9, 10**18, 2**31, 2**63, 2**64, -(2**63), 10**400,
    0.0, -0.5, 0.5, 1.5, 1e-300, 1e300, {LITERAL: "NaN"}, {LITERAL: "Infinity"}, {LITERAL: "-Infinity"},
    {LITERAL: "1e999"}, {LITERAL: "9" * 5000},
]  # fmt: skip
TEXTS = [
    "", " ", "x", "../x", "../../../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "..", ".", "CON", "nul\0", "\n",
    "t\u0430sk", "\ufb00", "\u202e", "\ud800", "%2E%2E", "@2", "first@1", "topics@2", "topics@1000000", "base",
    "pool", "trunk", "learning", "keys", "all", "none", "auto", "copy", "fixed", "float16", "float64", "int8", "nn",
    "bert", "llama",
    "t5", "gpt2", "eidetic", "vit", "timm_wrapper", "whisper", "mamba", "albert", "roberta", "sequence-classification",
    "causal-lm", "token-classification", "feature-extraction", "os.system", "eval", "gelu", "relu",
    "flash_attention_2", "eager", "sdpa", "flex_attention", "paged|eager", "kernels-community/flash-attn",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, [], {}, [None], [[]], [1, 2], ["x", "x"], ["x", 1], {"x": 1}, {"0": "x"}, {"a": {"b": {}}},
    {DEEP: 10**5, "of": "["}, {DEEP: 10**5, "of": "{"}, {DEEP: 900, "of": "["}, {DEEP: 900, "of": "{"},
    {LONG: 10**6}, {MANY: 10**5}, {MANY: 10**6},
]  # fmt: skip
NAMES = [
    "auto_map", "quantization_config", "trust_remote_code", "custom_pipelines", "_attn_implementation",
    "attn_implementation", "_attn_implementation_internal", "torch_dtype", "dtype", "_name_or_path", "name_or_path",
    "to_dict", "__class__", "__dict__", "get_text_config", "per_layer_config", "rope_scaling", "rope_parameters",
    "layer_types", "num_labels", "id2label", "pruned_heads", "tie_word_embeddings", "is_decoder",
    "add_cross_attention", "is_encoder_decoder", "hidden_size", "num_hidden_layers", "vocab_size", "text_config",
    "transformers_weights", "base_model_tp_plan", "experts_implementation", "use_cache", "torchscript", "task",
    "serves", "tasks", "self", "args", "kwargs", "model_type", "x", "", "\ud800", "a.b", "transformers_version",
    "adapter", "_commit_hash", "return_dict", "sub_configs", "base_config", "tokenizer_class",
    "chunk_size_feed_forward",
]  # fmt: skip
AUTO_MAP = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForSequenceClassification": "code.Model"}
QUANTIZED = [
    {"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "gptq", "bits": 4}, {"quant_method": "x"},
    {"quant_method": "torchao", "quant_type": "int4"}, 1,
]  # fmt: skip


# -- drawing ----------------------------------------------------------------------------------------------------------


def paths_in(document: Document, within: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON document, its own not among them."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    found: list[tuple[Any, ...]] = []
    for key, value in entries:
        found.append((*within, key))
        if isinstance(value, (dict, list)):
            found += paths_in(value, (*within, key))
    return found


def values() -> st.SearchStrategy[Any]:
    """JSON values of every type, mostly bad ones."""
    return st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.sampled_from(VALUES))


def _edits(file: str, document: Document, places: list[tuple[Any, ...]]) -> st.SearchStrategy[Change]:
    """Changes of one value of a JSON file: another one, none, a key more, another key, a value from elsewhere."""
    place = st.sampled_from(places).map(list)
    objects = [[], *(list(p) for p in places if isinstance(_at(document, list(p)), dict))]
    strangers = {
        "auto_map": AUTO_MAP,
        "quantization_config": QUANTIZED[0],
        "custom_pipelines": {"x": {"impl": "code.P"}},
    }
    return st.one_of(
        st.tuples(st.just("set"), st.just(file), place, values()),
        st.tuples(st.just("set"), st.just(file), place, values()),
        st.tuples(st.just("nudge"), st.just(file), place, st.sampled_from([-1, 1, 2, 0.5, 1.0001])),
        st.tuples(st.just("delete"), st.just(file), place),
        st.tuples(st.just("copy"), st.just(file), place, place),
        st.tuples(st.just("add"), st.just(file), st.sampled_from(objects), st.sampled_from(NAMES), values()),
        st.tuples(st.just("rename"), st.just(file), place, st.one_of(st.sampled_from(NAMES), st.sampled_from(TEXTS))),
        st.sampled_from(
            [["add", file, objects[i % len(objects)], k, v] for i, (k, v) in enumerate(strangers.items())]
        ),
    ).map(list)


def _texts(file: str) -> st.SearchStrategy[Change]:
    """Changes of a JSON file as a text."""
    ways = [
        "empty", "bom", "latin", "utf-16", "twice", "cut", "random", "nul", "deep list", "deep object", "array",
        "number", "long number", "large", "comments", "many keys",
    ]  # fmt: skip
    return st.tuples(st.just("text"), st.just(file), st.sampled_from(ways)).map(list)


def _bytes(shards: list[str]) -> st.SearchStrategy[Change]:
    """Changes of a shard as bytes; `True`: its size and SHA-256 in config.json fit again."""
    ways = st.one_of(
        st.sampled_from(["empty", "random", "pickle", "zip", "text"]).map(lambda way: [way]),
        st.tuples(st.just("cut"), st.integers(0, 4000)).map(list),
        st.tuples(st.just("extend"), st.integers(1, 4000)).map(list),
        st.tuples(st.just("flip"), st.integers(0, 20000), st.integers(0, 7)).map(list),
        st.tuples(st.just("length"), st.sampled_from([0, 1, 2, 10**3, 10**6, 10**9, 2**40, 2**63, 2**64 - 1])).map(
            list
        ),
    )
    return st.tuples(st.just("bytes"), st.sampled_from(shards), ways, st.booleans()).map(list)


def _headers(shards: list[str]) -> st.SearchStrategy[Change]:
    """Changes of the header of a shard; see `_bytes`. The number says which tensor."""
    sizes = [-1, 0, 1, 2, 3, 2**31, 2**62, 2**63, 1.5, "1", None, True, [1]]
    dtypes = [
        "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "Q4", "", None, 1, ["F32"], {},
    ]  # fmt: skip
    shapes = [None, 1, "x", {}, [1] * 10**5, [2**32, 2**32, 0]]
    offsets = [
        [0, 0], [0, 4], [-4, 0], [4, 0], [0, 2**62], [2**62, 2**63], [0], [], None, "x", [0, 4, 8], [None, None],
        [0.0, 4.0], [1, 5], [True, False],
    ]  # fmt: skip
    given: dict[str, list[Any]] = {
        "dtype": dtypes,
        "shape": shapes,
        "transposed": [None],
        "offsets": offsets,
        "shift": [-8, -4, -1, 1, 4, 8],
        "entry": [None, 1, "x", [], {}, {"dtype": "F32"}],
        "extra": [
            "x", "../x", "backbone.x", "heads.@x.weight", "", "a" * 10**5, "router.reference.x", "probes.@x.x",
            "\ud800",
        ],
        "without": [True, False],
        "renamed": ["x", "backbone.x", ""],
        "fill": ["zeros", "ones", "random"],
        "cast": ["F64", "F16", "BF16", "I64", "I32", "U8"],
        "reshaped": ["flat", "row", "more", "fewer", "none"],
        "metadata": [None, 1, {}, {"format": 1}, {DEEP: 10**5, "of": "["}],
        "json": ["[]", "1", "null", "{", '{"a":1,"a":2}', "NaN", "\xff"],
        "deep": [10**3, 10**5],
        "padded": [10**3, 10**6],
    }  # fmt: skip
    ways = st.one_of(
        *[st.tuples(st.just(way), st.sampled_from(values)) for way, values in given.items()],
        st.tuples(st.just("shape"), st.lists(st.sampled_from(sizes), max_size=4)),
        st.tuples(st.just("exchange"), st.integers(0, 50)),
    ).map(list)
    return st.tuples(st.just("header"), st.sampled_from(shards), st.integers(0, 60), ways, st.booleans()).map(list)


FILE_SYSTEM = [
    "pipe", "folder", "dangling link", "loop of links", "link to zero", "link outside", "link to a copy outside",
    "unreadable", "sparse", "missing", "socket", "link to stdin", "link to a pipe", "hard link",
]  # fmt: skip
AROUND = [
    "folder is a link", "lock is a pipe", "lock is a folder", "lock is a link outside", "saving is a link outside",
    "saving is a file", "committed is empty", "committed is a file", "committed is a link outside",
    "committed with removals outside", "committed with odd names", "committed with a folder", "committed with a pipe",
    "committed with a link outside", "removals is a pipe", "removals is a folder", "removals is a link outside",
    "removals is large", "committed removes all", "model.safetensors beside", "pickle beside", "code beside",
    "adapter beside", "committed config is a pipe", "many files beside",
]  # fmt: skip


def changes(folder: Path) -> st.SearchStrategy[list[Change]]:
    """One to three changes of a checkpoint folder."""
    config, index = (json.loads((folder / name).read_text()) for name in (CONFIG, INDEX))
    shards = sorted(config["files"])
    files = [CONFIG, INDEX, *shards, *([GENERATION] if (folder / GENERATION).exists() else [])]
    places = paths_in(config)
    by_key: dict[str, list[tuple[Any, ...]]] = {}
    for place in places:
        by_key.setdefault(str(place[0]), []).append(place)
    # Each field has its share, however many places there are in it, and each kind of change, however many there are.
    about = [by_key["base_config"], by_key.get("tasks") or places, by_key["files"], [(key,) for key in config], places]
    kinds = [
        *[_edits(CONFIG, config, found) for found in (about[0], about[1], *about)],
        _edits(INDEX, index, [("metadata",), ("weight_map",), *paths_in(index["metadata"], ("metadata",))]),
        _edits(INDEX, index, paths_in(index["weight_map"], ("weight_map",))),
        st.sampled_from([name for name in files if name.endswith(".json")]).flatmap(_texts),
        *[_bytes(shards)] * 2,
        *[_headers(shards)] * 5,
        st.tuples(st.just("swap"), st.sampled_from(files), st.sampled_from(files), st.booleans()).map(list),
        st.tuples(st.just("place"), st.sampled_from([*files, CARD]), st.sampled_from(FILE_SYSTEM)).map(list),
        st.tuples(st.just("around"), st.just(""), st.sampled_from(AROUND)).map(list),
    ]
    if (folder / GENERATION).exists():
        generation = json.loads((folder / GENERATION).read_text())
        kinds.append(_edits(GENERATION, generation, paths_in(generation)))
    one = st.integers(0, len(kinds) - 1).flatmap(kinds.__getitem__)  # `one_of` would take theirs for its own
    return st.lists(one, min_size=1, max_size=3)


# -- making -----------------------------------------------------------------------------------------------------------


def make(folder: Path, outside: Path, wanted: list[Change]) -> None:
    """Change a folder in place. What cannot be done any more, after the changes before it, is left out.

    Args:
        folder: of a checkpoint.
        outside: another folder, with the file `canary`, that nobody who loads the first may touch.
        wanted: the changes.
    """
    for what, file, *rest in wanted:
        others = rest[:1] if what == "swap" else []
        if not all(_is_small(folder / name) for name in [file, CONFIG, INDEX, *others] if name):
            continue
        try:
            _MAKERS[what](folder, outside, file, *rest)
        except (
            OSError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
            StopIteration,
        ):
            continue


def _is_small(path: Path) -> bool:
    """Whether this is still a file that can be changed: it may be a pipe by now, or of a terabyte."""
    return path.is_file() and path.stat().st_size < 10**9


def _at(document: Document, place: list[Any]) -> Document:
    for key in place:
        document = document[key]
    return document


def _write(path: Path, document: Document) -> None:
    """Write a JSON file, with what stands for what `json.dumps` can not write."""
    kept: dict[str, str] = {}

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() & {DEEP, LONG, MANY, LITERAL}:
                kept[token := f"@@{len(kept)}@@"] = _literal(value)
                return token
            return {key: shown(each) for key, each in value.items()}
        return [shown(each) for each in value] if isinstance(value, list) else value

    text = json.dumps(shown(document), indent=1)
    for token, literal in kept.items():
        text = text.replace(f'"{token}"', literal)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def _literal(value: dict[str, Any]) -> str:
    if DEEP in value:
        opening = "[" if value["of"] == "[" else '{"a":'
        return opening * value[DEEP] + "1" + ("]" if value["of"] == "[" else "}") * value[DEEP]
    if LONG in value:
        return json.dumps("a" * value[LONG])
    if MANY in value:
        return json.dumps([f"label {number}" for number in range(value[MANY])])
    return value[LITERAL]


def _edit(change: Callable[[Document, Any], None]) -> Callable[..., None]:
    """A maker that changes the value at a place in a JSON file."""

    def made(folder: Path, outside: Path, file: str, place: list[Any], *rest: Any) -> None:
        document = json.loads((folder / file).read_text(encoding="utf-8"))
        parent = _at(document, place[:-1])
        change(parent, place[-1] if place else None, *rest, **({"document": document} if change is _copied else {}))
        _write(folder / file, document)

    return made


def _set(parent: Document, key: Any, value: Any) -> None:
    parent[key] = value


def _nudged(parent: Document, key: Any, how: float) -> None:
    value = parent[key]
    if isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, (int, float)):
        parent[key] = value + how if how in (-1, 1) else type(value)(value * how)
    elif isinstance(value, str):
        parent[key] = value[1:] + value[:1]
    elif isinstance(value, list):
        parent[key] = value[::-1]
    elif isinstance(value, dict):
        first = next(iter(value))
        parent[key] = {name: each for name, each in value.items() if name != first}


def _copied(parent: Document, key: Any, source: list[Any], document: Document) -> None:
    parent[key] = _at(document, source)


def _renamed(parent: Document, key: Any, name: str) -> None:
    parent[name] = parent.pop(key)


def _deleted(parent: Document, key: Any) -> None:
    del parent[key]


def _add(folder: Path, outside: Path, file: str, place: list[Any], key: str, value: Any) -> None:
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    _at(document, place)[key] = value
    _write(folder / file, document)


def _text(folder: Path, outside: Path, file: str, way: str) -> None:
    path = folder / file
    text = path.read_text(encoding="utf-8")
    made: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "bom": lambda: b"\xef\xbb\xbf" + text.encode(),
        "latin": lambda: text.replace("a", "\xe4").encode("latin-1"),
        "utf-16": lambda: text.encode("utf-16"),
        "twice": lambda: (text.rstrip()[:-1] + "," + text.lstrip()[1:]).encode(),
        "cut": lambda: text[: len(text) // 2].encode(),
        "random": lambda: hashlib.sha256(text.encode()).digest() * 100,
        "nul": lambda: bytes(1000),
        "deep list": lambda: b"[" * 10**5 + b"]" * 10**5,
        "deep object": lambda: b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
        "array": lambda: f"[{text}]".encode(),
        "number": lambda: b"1e999",
        "long number": lambda: b"9" * 10**6,
        "comments": lambda: ("// x\n" + text).encode(),
        "many keys": lambda: (text.rstrip()[:-1] + "".join(f',"k{n}":{n}' for n in range(10**5)) + "}").encode(),
        "large": lambda: text.encode(),
    }
    path.write_bytes(made[way]())
    if way == "large":
        os.truncate(path, 600_000_000)


def _recorded(folder: Path, file: str) -> None:
    """Let config.json have the size and the SHA-256 that a shard has now."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    content = (folder / file).read_bytes()
    config["files"][file] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    _write(folder / CONFIG, config)


def _changed_bytes(folder: Path, outside: Path, file: str, way: list[Any], recorded: bool) -> None:
    content = bytearray((folder / file).read_bytes())
    what, *numbers = way
    if what in ("empty", "random", "pickle", "zip", "text"):
        evil = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
        content = bytearray(
            {"empty": b"", "random": os.urandom(64), "pickle": evil, "zip": b"PK\x03\x04" + evil, "text": b"{}"}[what]
        )
    elif what == "cut":
        del content[max(len(content) - numbers[0], 0) :]
    elif what == "extend":
        content += bytes(numbers[0])
    elif what == "flip":
        content[numbers[0] % len(content)] ^= 1 << numbers[1]
    elif what == "length":
        content[:8] = numbers[0].to_bytes(8, "little")
    (folder / file).write_bytes(content)
    if recorded:
        _recorded(folder, file)


_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _changed_header(folder: Path, outside: Path, file: str, number: int, way: list[Any], recorded: bool) -> None:
    content = (folder / file).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = sorted(name for name in header if name != "__metadata__")
    name = names[number % len(names)]
    entry, (what, given) = header[name], way
    begin, end = entry["data_offsets"]
    index_change: Callable[[dict[str, str]], Any] = lambda weight_map: None  # noqa: E731
    text = None
    if what in ("dtype", "shape"):
        entry[what] = given
    elif what == "transposed":
        entry["shape"] = entry["shape"][::-1]
    elif what == "offsets":
        entry["data_offsets"] = given
    elif what == "shift":
        entry["data_offsets"] = [begin + given, end + given]
    elif what == "exchange":
        other = header[names[given % len(names)]]
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif what == "entry":
        header[name] = given
    elif what == "extra":
        header[given] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        data += bytes(4)
        index_change = lambda weight_map: weight_map.update({given: file})  # noqa: E731
    elif what == "without":
        del header[name]
        index_change = (lambda weight_map: weight_map.pop(name)) if given else index_change
    elif what == "renamed":
        header[given] = header.pop(name)
        index_change = lambda weight_map: weight_map.update({given: weight_map.pop(name)})  # noqa: E731
    elif what == "fill":
        data[begin:end] = {
            "zeros": bytes(end - begin), "ones": b"\xff" * (end - begin), "random": os.urandom(end - begin)
        }[given]  # fmt: skip
    elif what in ("cast", "reshaped"):
        count = (end - begin) // _WIDTHS[entry["dtype"]]
        if what == "cast":
            entry["dtype"] = given
        else:
            shape = entry["shape"] or [1]
            entry["shape"] = {
                "flat": [count], "row": [1, *shape], "more": [shape[0] + 1, *shape[1:]],
                "fewer": [max(shape[0] - 1, 0), *shape[1:]], "none": [0],
            }[given]  # fmt: skip
        count = 1
        for size in entry["shape"]:
            count *= size
        entry["data_offsets"] = [len(data), len(data) + count * _WIDTHS[entry["dtype"]]]
        data += bytes(count * _WIDTHS[entry["dtype"]])
        if number % 2:  # as a writer would: no gap
            header, data = _without_gaps(header, data)
    elif what == "metadata":
        header["__metadata__"] = given
    elif what == "json":
        text = given
    elif what == "deep":
        text = '{"a":' * given + "1" + "}" * given
    if text is None:
        kept = header.get("__metadata__")
        text = json.dumps({**header, **({"__metadata__": 0} if isinstance(kept, dict) and DEEP in kept else {})})
        if isinstance(kept, dict) and DEEP in kept:
            text = text.replace('"__metadata__": 0', f'"__metadata__": {_literal(kept)}')
    if what == "padded":
        text += " " * given
    encoded = text.encode("latin-1" if what == "json" else "utf-8", errors="surrogatepass")
    (folder / file).write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index_change(index["weight_map"])
    _write(folder / INDEX, index)
    if recorded:
        _recorded(folder, file)


def _without_gaps(header: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], bytearray]:
    packed, made = bytearray(), dict(header)
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            made[name] = {**entry, "data_offsets": [len(packed), len(packed) + end - begin]}
            packed += data[begin:end]
    return made, packed


def _swapped(folder: Path, outside: Path, file: str, other: str, recorded: bool) -> None:
    first, second = (folder / file).read_bytes(), (folder / other).read_bytes()
    (folder / file).write_bytes(second)
    (folder / other).write_bytes(first)
    for name in (file, other) if recorded else ():
        _recorded(folder, name)


def _placed(folder: Path, outside: Path, file: str, what: str) -> None:
    path = folder / file
    kept = path.read_bytes() if path.stat().st_size < 10**7 else b""  # it may be sparse by now
    path.unlink()
    _put(path, outside, what, kept)


def _put(path: Path, outside: Path, what: str, kept: bytes = b"") -> None:
    """Put something else in place of a file."""
    if what in ("pipe", "link to a pipe"):
        os.mkfifo(path if what == "pipe" else outside / "pipe")
    elif what == "folder":
        path.mkdir()
    elif what == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as listening:
            here = os.getcwd()
            os.chdir(path.parent)  # the path of a socket is short
            listening.bind(path.name)
            os.chdir(here)
    elif what in ("unreadable", "sparse"):
        path.write_bytes(kept)
        if what == "sparse":
            os.truncate(path, 10**12)
        else:
            path.chmod(0)
    elif what == "hard link":
        (outside / "copy").write_bytes(kept)
        os.link(outside / "copy", path)
    (outside / "copy").write_bytes(kept)
    targets = {
        "dangling link": "nowhere", "loop of links": path.name, "link to zero": "/dev/zero",
        "link outside": outside / "canary", "link to a copy outside": outside / "copy", "link to stdin": "/dev/stdin",
        "link to a pipe": outside / "pipe",
    }  # fmt: skip
    if what in targets:
        path.symlink_to(targets[what])


def _around(folder: Path, outside: Path, file: str, what: str) -> None:
    prepared, config = folder / COMMITTED, (folder / CONFIG).read_bytes()
    if what == "folder is a link":
        shutil.move(folder, outside / "moved")
        folder.symlink_to(outside / "moved")
        return
    thing, _, how = what.partition(" is a ")
    if thing in ("lock", "saving", "committed"):
        if thing != "committed":
            prepared.mkdir(exist_ok=True)  # or nobody would look at the others
        place = folder / {"lock": LOCK, "saving": SAVING, "committed": COMMITTED}[thing]
        place.write_bytes(b"x") if how == "file" else _put(
            place, outside, {"link outside": "link to a folder"}.get(how, how)
        )
        if how == "link outside":
            place.symlink_to(outside if thing != "lock" else outside / "canary")
        return
    if what.endswith("beside"):
        beside = {
            "model.safetensors beside": {"model.safetensors": b"\x02\0\0\0\0\0\0\0{}"},
            "pickle beside": {"pytorch_model.bin": b"\x80\x04.", "optimizer.pt": b"\x80\x04."},
            "code beside": {"code.py": b"raise SystemExit(77)\n", "__init__.py": b"raise SystemExit(77)\n"},
            "adapter beside": {"adapter_config.json": b'{"base_model_name_or_path": "../x", "peft_type": "LORA"}'},
            "many files beside": {f"file-{number}": b"" for number in range(3000)},
        }[what]
        for name, content in beside.items():
            (folder / name).write_bytes(content)
        if what == "code beside":
            values = json.loads(config)
            values["auto_map"] = values["base_config"]["auto_map"] = AUTO_MAP
            _write(folder / CONFIG, values)
        return
    prepared.mkdir(exist_ok=True)
    removals = prepared / REMOVALS
    if removals.is_symlink():  # of a change before this one: who writes there writes outside
        removals.unlink()
    if thing == "removals":
        _put(removals, outside, how)
        return
    if what == "removals is large":
        removals.write_bytes(b"x\n")
        os.truncate(removals, 10**12)
    elif what == "committed with removals outside":
        removals.write_text(f"../outside/canary\n{outside / 'canary'}\n..\n.\n\n\0\n{CARD}\n")
    elif what == "committed removes all":
        removals.write_text("".join(f"{path.name}\n" for path in folder.iterdir()))
    elif what == "committed with odd names":
        for name in ("\n", "a\\b", "-rf", "\u202e", "x" * 200, ".eidetic.lock", "..."):
            (prepared / name).write_bytes(b"x")
    elif what == "committed with a folder":
        (prepared / CONFIG).mkdir()
    elif what == "committed with a pipe":
        os.mkfifo(prepared / "pipe")
    elif what == "committed config is a pipe":
        os.mkfifo(prepared / CONFIG)
    elif what == "committed with a link outside":
        (prepared / CARD).symlink_to(outside / "canary")


_MAKERS: dict[str, Callable[..., None]] = {
    "set": _edit(_set),
    "nudge": _edit(_nudged),
    "delete": _edit(_deleted),
    "copy": _edit(_copied),
    "rename": _edit(_renamed),
    "add": _add,
    "text": _text,
    "bytes": _changed_bytes,
    "header": _changed_header,
    "swap": _swapped,
    "place": _placed,
    "around": _around,
}
