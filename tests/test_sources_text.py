"""The mixture of texts: what it reads, in what order, in what shares, and what it refuses."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from transformers import PreTrainedTokenizerFast

from sae_emotions.config import TextConfig, TextSource
from sae_emotions.errors import UserError
from sae_emotions.sources import text
from sae_emotions.sources.known import known_model, known_sources
from sae_emotions.sources.tables import kind_of, read_column
from sae_emotions.sources.text import Document, documents

TEXTS = ["one two three", "four, five", "six seven eight nine", "x" * 200_000 + " end"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words are tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    backend = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")


def as_csv(texts: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([("id", "text"), *enumerate(texts)])
    return out.getvalue()


def as_jsonl(texts: list[Any]) -> str:
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))


def jsonl(folder: Path, texts: list[Any], name: str = "texts.jsonl") -> str:
    (folder / name).write_text(as_jsonl(texts), encoding="utf-8")
    return str(folder / name)


def read(tokenizer: Any, *sources: dict[str, Any], seed: int = 0) -> list[Document]:
    config = TextConfig(tokens=1, sources=tuple(TextSource(**source) for source in sources))
    return list(documents(config, tokenizer, seed))


def write_table(path: Path) -> Path:
    """The four texts in the form that the file's name asks for."""
    kind = kind_of(path.name)
    if kind == ".parquet":
        pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), path)
        return path
    records = [{"text": text} for text in TEXTS]
    forms = {".csv": as_csv(TEXTS), ".jsonl": as_jsonl(TEXTS), ".json": json.dumps(records), ".txt": "\n\n".join(TEXTS)}
    data = forms[str(kind)].encode()
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(
    "name", ["a.csv", "a.csv.zst", "a.csv.gz", "a.jsonl", "a.jsonl.zst", "a.json", "a.parquet", "a.txt", "a.txt.gz"]
)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert list(read_column(write_table(tmp_path / name), "text")) == list(enumerate(TEXTS))


def test_blank_lines_part_the_documents_of_a_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none two\nthree\n   \n\n\nfour five\n", encoding="utf-8")
    assert list(read_column(tmp_path / "a.txt", "text")) == [(0, "one two\nthree"), (1, "four five")]


def test_the_seed_alone_decides_the_order(tmp_path: Path, tokenizer: Any) -> None:
    source = {"source": jsonl(tmp_path, [f"text number {i}" for i in range(50)])}
    first = read(tokenizer, source)
    assert first == read(tokenizer, source)
    other = read(tokenizer, source, seed=1)
    assert first != other
    assert sorted(first) == sorted(other)
    assert [d.key for d in first] != sorted(d.key for d in first)
    assert all(d.text == f"text number {d.key.removeprefix('texts.jsonl:')}" for d in first)


def test_a_table_beyond_memory_is_permuted_block_by_block(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_SHUFFLED_CHARACTERS", 600)
    path = jsonl(tmp_path, [f"number {i:04} of many" for i in range(90)])  # 19 characters each: 32 documents a block
    rows = [int(d.key.removeprefix("texts.jsonl:")) for d in read(tokenizer, {"source": path})]
    for start in range(0, 90, 32):
        block = rows[start : start + 32]
        assert block != sorted(block)
        assert sorted(block) == list(range(start, min(start + 32, 90)))


def test_weights_are_shares_of_tokens(tmp_path: Path, tokenizer: Any) -> None:
    long_words = [f"{i} " + "extraordinarily " * 20 for i in range(400)]
    short_words = [f"{i} " + "so it is " * 3 for i in range(4000)]
    mixture = read(
        tokenizer,
        {"source": jsonl(tmp_path, long_words, "long.jsonl"), "weight": 3},
        {"source": jsonl(tmp_path, short_words, "short.jsonl"), "weight": 1},
    )
    tokens: Counter[str] = Counter()
    for document in mixture:
        tokens[document.source] += len(document.text.split())
        if tokens.total() > 4000:
            break
    assert tokens["long.jsonl"] / tokens.total() == pytest.approx(0.75, abs=0.02)
    assert len(mixture) == 4400  # the source that lasts longer is read to its end


def test_repeated_texts_come_once_whatever_their_source(tmp_path: Path, tokenizer: Any) -> None:
    one = {"source": jsonl(tmp_path, ["one two", "one two", "three four"], "one.jsonl")}
    two = {"source": jsonl(tmp_path, ["three four ", "five six"], "two.jsonl")}
    assert sorted(d.text for d in read(tokenizer, one, two)) == ["five six", "one two", "three four"]


def test_sources_of_one_name_are_told_apart(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "other").mkdir()
    one, two = jsonl(tmp_path, ["one two"]), jsonl(tmp_path / "other", ["three four"])
    assert {d.key for d in read(tokenizer, {"source": one}, {"source": two})} == {"texts.jsonl:0", "texts.jsonl#2:0"}


def test_cleaning(tmp_path: Path, tokenizer: Any) -> None:
    path = jsonl(
        tmp_path, ["One.<br /><br/>Two three.", 'Said \\"no\\".\\n\\nAT&amp;T left', "all lower here", "Word", ""]
    )
    plain = {d.text for d in read(tokenizer, {"source": path})}
    assert plain == {"One.<br /><br/>Two three.", 'Said \\"no\\".\\n\\nAT&amp;T left', "all lower here"}
    options = {"strip_html": True, "unescape": True, "drop_lowercase": True}
    cleaned = {d.text for d in read(tokenizer, {"source": path, **options})}
    assert cleaned == {"One.\n\nTwo three.", 'Said "no".\n\nAT&T left'}


def test_max_documents(tmp_path: Path, tokenizer: Any) -> None:
    path = jsonl(tmp_path, [f"text number {i}" for i in range(9)])
    assert len(read(tokenizer, {"source": path, "max_documents": 4})) == 4


CHATS = [
    [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}],
    [{"from": "human", "value": "Who is there?"}, {"from": "gpt", "value": "Nobody."}],
]


def chatting(tokenizer: Any, adds_opening: bool) -> Any:
    """A copy with a chat template that begins with the opening token."""
    import copy

    from tokenizers.processors import TemplateProcessing

    own = copy.deepcopy(tokenizer)
    own.chat_template = "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    if adds_opening:
        own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return own


@pytest.mark.parametrize("adds_opening", [False, True])
def test_conversations_are_rendered_by_the_chat_template(tmp_path: Path, tokenizer: Any, adds_opening: bool) -> None:
    opening = "" if adds_opening else "<s>"
    found = read(chatting(tokenizer, adds_opening), {"source": jsonl(tmp_path, CHATS)})
    assert {d.text for d in found} == {
        opening + "user: How are you?\nassistant: Well.",
        opening + "user: Who is there?\nassistant: Nobody.",
    }


def test_conversations_that_cannot_be_rendered(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no chat template"):
        read(tokenizer, {"source": jsonl(tmp_path, CHATS)})
    own = chatting(tokenizer, False)
    with pytest.raises(UserError, match="each message needs role and content"):
        read(own, {"source": jsonl(tmp_path, [[{"speaker": "a", "content": "b"}]])})
    own.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="refuses: roles must alternate"):
        read(own, {"source": jsonl(tmp_path, CHATS)})


def test_a_folder_is_streamed_like_a_data_set_of_the_hub(tmp_path: Path, tokenizer: Any) -> None:
    jsonl(tmp_path, [f"text number {i}" for i in range(5)], "train.jsonl")
    found = read(tokenizer, {"source": str(tmp_path)})
    assert [d.text for d in found] == [f"text number {i}" for i in range(5)]  # as they come
    with pytest.raises(UserError, match="has no column 'body'; its columns are: id, text"):
        read(tokenizer, {"source": str(tmp_path), "column": "body"})
    with pytest.raises(UserError, match="split 'test' could not be read"):
        read(tokenizer, {"source": str(tmp_path), "split": "test"})


def test_a_data_set_out_of_reach(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="'nobody/nothing', split 'train' could not be read: the hub cannot be reached"):
        read(tokenizer, {"source": "nobody/nothing"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,title\n1,x\n", "a.csv has no column 'text'; its columns are: id, title"),
        ("a.jsonl", '{"title": "x"}\n', "has no column 'text'; its columns are: title"),
        ("a.jsonl", '{"text": "one two"}\n{"text": \n', "line 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", "record 1 is not an object"),
        ("a.jsonl", '{"text": 3}\n', "holds values of type int"),
        ("a.jsonl", "", "holds no text of two tokens or more"),
        ("a.csv", "text\n\nword\n", "holds no text of two tokens or more"),
        ("a.json", '{"text": "one two"}', "holds no list of records"),
        ("a.json", "[\n{", "not valid JSON at line 2"),
        ("a.csv.zst", "text\none two\n", "is damaged"),
        ("a.csv.gz", "text\none two\n", "is damaged"),
        ("a.parquet", "no parquet", "is damaged"),
        ("a.docx", "one two", "unknown type; known are .csv"),
        ("a.parquet.zst", "one two", "unknown type"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, tokenizer: Any, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(tokenizer, {"source": str(tmp_path / name)})


def test_more_that_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="There is no text file"):
        read(tokenizer, {"source": str(tmp_path / "absent.csv")})
    with pytest.raises(UserError, match=r"There is no text file absent\.csv"):
        read(tokenizer, {"source": "absent.csv"})
    (tmp_path / "latin.csv").write_bytes("text\ncaf\u00e9 cr\u00e8me\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read(tokenizer, {"source": str(tmp_path / "latin.csv")})
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="its columns are: title"):
        read(tokenizer, {"source": str(tmp_path / "b.parquet")})


def test_the_default_config_names_known_sources() -> None:
    from sae_emotions.config import load_config

    config = load_config(Path(__file__).parents[1] / "train" / "smollm2-135m.yaml")
    known = {entry["name"]: entry["sha256"] for entry in known_sources()}
    assert known[config.model.source] == config.model.sha256
    assert known_model(config.model.source) is not None
    for source in config.text.sources:
        assert known[source.source] == source.sha256
