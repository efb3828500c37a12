"""JSON, CSV and YAML as they come from elsewhere: read, or refused in one line; and cells that no spreadsheet runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flarecps.cli.former_keys import read_config
from flarecps.errors import ConfigError, visible
from flarecps.text_files import csv_text, read_csv, read_json, read_own_json, read_text, read_yaml

BOMB = "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
SPREADSHEET = "Name;Liver_DSC;Liver_NSD;;\r\nc1;0,5;1;;\r\n;;;;\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_marks_of_byte_order(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-le" else ""  # Python writes one for the others
    (tmp_path / "x.json").write_bytes(f'{mark}{{"Größe": 1}}\r\n'.encode(encoding))
    assert read_json(tmp_path / "x.json", ConfigError, "") == {"Größe": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"a": "\xfc"}', "line 1 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": [NaN]}', "'a' holds nan"),
        (b'{"a": {"b": -Infinity}}', "'b' holds -inf"),
        (b"1e999", "holds inf"),
        (b"1" * 5000, "not valid JSON"),
        (b'{"a": 9223372036854775808}', "'a' holds a whole number of more than 64 bits"),
        (b'["\\ud800"]', "no character"),
        (b'{"a\\u0000": 1}', "no character"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b"[" * 200_000, "nested without end"),
    ],
)
def test_what_no_reader_can_use(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        read_json(path, ConfigError, "expected the settings")
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1
    assert read_own_json(path) == {}


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * 2000)
    for name, said in (("none", "no such file"), (".", "a folder"), ("pipe", "a pipe or device"), ("a\0b", "can't be")):
        with pytest.raises(ConfigError, match=f"{said}.*; expected x"):
            read_text(tmp_path / name, ConfigError, "expected x")
    with pytest.raises(ConfigError, match="of at most"):
        read_text(tmp_path / "large", ConfigError, "expected x", largest=1000)


@pytest.mark.parametrize(
    "text",
    [
        SPREADSHEET,
        "\ufeff" + SPREADSHEET,
        "sep=;\r\n" + SPREADSHEET,
        SPREADSHEET.replace(";", "\t"),
        '"Name","Liver_DSC","Liver_NSD"\n"c1","0.5","1"\n',
        "Name,Liver_DSC,Liver_NSD,\nc1,0.5,1,\n,,,\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_as_spreadsheets_save_them(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    table = read_csv(tmp_path / "t.csv", ConfigError, "")
    assert table.columns == ("Name", "Liver_DSC", "Liver_NSD")
    assert table.rows == ({"Name": "c1", "Liver_DSC": "0.5", "Liver_NSD": "1"},)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1\n", "row 2 has 1 cells, the header 2"),
        ("a,b\n1,2\n1,2,3\n", "row 3 has 3 cells"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ("a,b\n1," + "x" * 200_000, "not a CSV table"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_csv(tmp_path / "t.csv", ConfigError, "")


def test_a_growing_table_is_read_up_to_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3")
    assert read_csv(tmp_path / "t.csv", ConfigError, "", growing=True).rows == ({"a": "1", "b": "2"},)


def test_no_spreadsheet_runs_a_cell_and_it_is_read_as_it_was(tmp_path: Path) -> None:
    cells = ["=1+1", "+cmd|' /C calc'!A0", "-1-1", "@SUM(1)", "\t=1", " =1", "'=1", "''+x", "＝1", "-0.5", "+0.0200",
             "-1e-3", "liver", "o'clock", "'quoted'"]  # fmt: skip
    (tmp_path / "t.csv").write_text(csv_text([[str(n) for n in range(len(cells))], cells, [-0.5] * len(cells)]))
    rows = read_csv(tmp_path / "t.csv", ConfigError, "").rows
    assert list(rows[0].values()) == cells
    assert set(rows[1].values()) == {"-0.5"}
    written = (tmp_path / "t.csv").read_text().splitlines()[1]
    for cell in ("=1+1", "@SUM(1)", "-1-1", "＝1"):
        assert f",'{cell}," in f",{written}"
    assert ",-0.5,+0.0200,-1e-3,liver," in written


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: 1e-3\nb: ${a}\nc: [x]")
    assert read_yaml(path, ConfigError, "") == {"a": 1e-3, "b": "${a}", "c": ["x"]}
    path.write_text("")
    assert read_yaml(path, ConfigError, "") == {}
    for text in (
        BOMB,
        "a: &a [*a]",
        "[" * 5000,
        "[1]",
        "hello",
        "a: 1\na: 2",
        "a: !!python/name:os.system",
        "a:\n\tb: 1",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match="expected settings"):
            read_yaml(path, ConfigError, "expected settings")


def test_visible() -> None:
    assert visible("a\x1b[2J\x9b\u202eb\udcff\r\n\tä") == "a\\x1b[2J\\x9b\\u202eb\\udcff\\r\n\tä"
    json.dumps(visible("\udcff")).encode()


def test_a_config_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    for content in (b"a: \xfc", "a: 1".encode("utf-16")):
        (tmp_path / "c.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"c\.yaml: not UTF-8"):
            read_config(str(tmp_path / "c.yaml"))
    assert read_config("a: ü") == {"a": "ü"}
