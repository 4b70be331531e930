"""Torch files that nobody thought of: read as Python's own unpickler reads them, or refused."""

import io
import json
import pathlib
import pickle
import pickletools
import resource
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semsam_jax.convert.names import unwrap
from semsam_jax.convert.torch_reader import read_state_dict
from semsam_jax.convert.torch_writer import write_state_dict
from semsam_jax.core.errors import ConversionError
from tests.convert.test_torch_reader import archive, load_as_torch_does, one_tensor, tensor_op

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),
]
FUZZ = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
ARRAYS = st.builds(
    lambda shape, dtype, seed: np.random.default_rng(seed).normal(0, 9, shape).astype(dtype),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(["float32", "float16", "int64", "bool"]),
    st.integers(0, 99),
)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)


@FUZZ
@given(
    st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=5),
    st.sampled_from([None, "model", "state_dict", "model_ema", "ema", "anything"]),
)
def test_written_files_are_read_as_python_reads_them(folder, state, wrapper):
    path = folder / "a.pth"
    write_state_dict(path, state, wrapper=wrapper)
    naive = load_as_torch_does(path)
    naive = naive if wrapper is None else naive[wrapper]
    read = read_state_dict(path)
    assert list(read) == list(naive) == list(state)
    for name, array in naive.items():
        np.testing.assert_array_equal(read[name], array)
    try:
        plain = unwrap(read)
    except ConversionError:
        return
    assert len(plain) <= len(read)


OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]
GLOBALS = [
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nSize\n",
    b"ctorch\nFloatStorage\n",
    b"cos\nsystem\n",
    b"cbuiltins\ngetattr\n",
]
VALUES = [b"K\1", b"J\xff\xff\xff\x7f", b"L99999999999999999999L\n", b"S'w'\n", b"N", b"\x89"]
VALUES += [b"}", b"]", b")", b"(", b"q\0", b"h\0", b"r\xff\xff\xff\x7f", b"2", b"X\1\0\0\0s"]
ACTIONS = [b"R", b"b", b"s", b"u", b"a", b"e", b"\x85", b"\x86", b"t"]
PIECES = st.one_of(
    st.sampled_from(
        GLOBALS + VALUES + [b"R", b"b", b"s", b"u", b"a", b"e", b"\x85", b"\x86", b"t"]
    ),
    st.sampled_from(OPCODES),
    st.binary(max_size=3),
    st.just(tensor_op("FloatStorage", "0", 6, 0, (2, 3), (3, 1))),
)


def read_or_refuse(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, message = {}, ""
    try:
        read = read_state_dict(path)
    except ConversionError as error:
        message = str(error)
    assert len(message) < 1000
    assert bool(read) != bool(message)
    assert all(isinstance(value, np.ndarray) and value.size <= 6 for value in read.values())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # kilobytes


@FUZZ
@given(st.lists(PIECES, max_size=30).map(b"".join))
def test_any_instructions_give_tensors_or_one_error(folder, body):
    pkl = b"\x80\x02" + body + b"."
    six = np.arange(6, dtype=np.float32).tobytes()
    read_or_refuse(archive(folder / "b.pth", pkl, {"0": six}))
    read_or_refuse(archive(folder / "c.pth", b"\x80\x02}S'w'\n" + body + b"s.", {"0": six}))


@FUZZ
@given(st.data())
def test_damage_at_any_place(folder, data):
    good = one_tensor()
    place = data.draw(st.integers(2, len(good) - 1))
    cut = data.draw(st.integers(0, 3))
    new = data.draw(st.one_of(st.binary(max_size=5), PIECES))
    six = np.arange(6, dtype=np.float32).tobytes()
    pkl = good[:place] + new + good[place + cut :]
    read_or_refuse(archive(folder / "d.pth", pkl, {"0": six}))


@FUZZ
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\3\4", b"\x80\x02\x8a\x0a"]))
def test_any_bytes(folder, content, head):
    path = folder / "e.pth"
    path.write_bytes(head + content)
    read_or_refuse(path)


@FUZZ
@given(
    st.dictionaries(
        NAMES,
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "X", 3]),
                "shape": st.lists(st.integers(-1, 3), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 40), max_size=3),
            }
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
)
def test_any_safetensors_header(folder, header, content):
    text = json.dumps(header).encode()
    path = folder / "f.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    try:
        message = f"{len(read_state_dict(path))} tensors of f.safetensors"
    except ConversionError as error:
        message = str(error)
    assert "f.safetensors" in message


def test_the_naive_reader_is_pythons_own(folder):
    """What the comparison above rests on: a pickle that Python itself can read."""
    write_state_dict(folder / "g.pth", {"w": np.zeros(3, np.float32)})
    with zipfile.ZipFile(folder / "g.pth") as opened:
        name = next(n for n in opened.namelist() if n.endswith("data.pkl"))
        with pytest.raises((ModuleNotFoundError, pickle.UnpicklingError)):
            pickle.Unpickler(io.BytesIO(opened.read(name))).load()
