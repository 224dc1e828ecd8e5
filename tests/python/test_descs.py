"""Descriptor lists: containers of rows, pickled as NIXL pickles them."""

import contextlib
import io
import itertools
import pickle
import struct

import pytest
from support import blob as grammar
from support import blocks

ROWS = [(0x1000, 64, 0), (0x2000, 128, 1), (0x3000, 256, 0)]
REG_ROWS = [(0x1000, 64, 0, b""), (0x2000, 128, 1, b"a\0b")]


@pytest.fixture
def agent(endpoint):
    return endpoint().agent


@pytest.fixture
def xfer_list(agent):
    return agent.get_xfer_descs(ROWS, "DRAM")


@pytest.fixture
def reg_list(agent):
    return agent.get_reg_descs(REG_ROWS, "DRAM")


def rows_of(lists):
    return [lists[i] for i in range(lists.descCount())]


def test_a_list_holds_its_rows(api, xfer_list):
    assert rows_of(xfer_list) == ROWS
    assert xfer_list.descCount() == 3
    assert not xfer_list.isEmpty()
    assert xfer_list.getType() == api.DRAM_SEG
    assert xfer_list.index(ROWS[1]) == 1


def test_registration_list_holds_bytes_for_each_row(reg_list):
    assert rows_of(reg_list) == REG_ROWS
    assert reg_list.index(REG_ROWS[1]) == 1


def test_text_in_a_row_is_returned_as_bytes(agent):
    made = agent.get_reg_descs([(1, 2, 3, "/a/path")], "FILE")
    assert made[0] == (1, 2, 3, b"/a/path")


def test_trim_returns_a_transfer_list(api, reg_list):
    trimmed = reg_list.trim()
    assert isinstance(trimmed, api.nixlXferDList)
    assert rows_of(trimmed) == [row[:3] for row in REG_ROWS]


def test_empty_lists_are_true(api):
    """SGLang: `if not descs: raise`."""
    assert api.nixlXferDList(api.DRAM_SEG)
    assert api.nixlRegDList(api.DRAM_SEG)


def test_lists_compare_by_value(agent, xfer_list):
    assert xfer_list == agent.get_xfer_descs(ROWS, "DRAM")
    assert xfer_list != agent.get_xfer_descs(ROWS[:2], "DRAM")
    assert xfer_list != agent.get_xfer_descs(ROWS, "VRAM")


def test_rows_are_added_changed_and_removed(api):
    made = api.nixlXferDList(api.DRAM_SEG)
    assert made.isEmpty()
    for row in ROWS:
        made.addDesc(row)
    assert rows_of(made) == ROWS
    made[1] = (7, 8, 9)
    assert made[1] == (7, 8, 9)
    made.remDesc(0)
    assert rows_of(made) == [(7, 8, 9), ROWS[2]]
    made.clear()
    assert made.isEmpty()
    assert made.descCount() == 0


def test_list_given_as_input_is_returned_unchanged(agent, xfer_list, reg_list):
    assert agent.get_xfer_descs(xfer_list) is xfer_list
    assert agent.get_reg_descs(reg_list) is reg_list


@pytest.mark.parametrize(
    ("word", "constant"),
    [
        ("DRAM", "DRAM_SEG"),
        ("VRAM", "VRAM_SEG"),
        ("FILE", "FILE_SEG"),
        ("BLOCK", "BLK_SEG"),
        ("OBJ", "OBJ_SEG"),
        ("cpu", "DRAM_SEG"),
        ("cuda", "VRAM_SEG"),
    ],
)
def test_memory_types_use_nixls_names(api, agent, word, constant):
    made = agent.get_xfer_descs(ROWS, word)
    assert made.getType() == getattr(api, constant)


def test_int64_arrays_preserve_all_bits(agent):
    """SGLang's staging passes addresses as int64."""
    pytest.importorskip("numpy")
    made = agent.get_xfer_descs(blocks.as_numpy(ROWS, "int64"), "DRAM")
    assert rows_of(made) == ROWS
    assert rows_of(agent.get_reg_descs(blocks.as_numpy(ROWS), "DRAM")) == [
        (*row, b"") for row in ROWS
    ]


@pytest.mark.beyond_stock
def test_row_past_the_end_raises_index_error(xfer_list):
    """Stock reads beyond the list."""
    with pytest.raises(IndexError):
        xfer_list[3]
    with pytest.raises(IndexError):
        xfer_list[3] = (1, 2, 3)
    with pytest.raises(IndexError):
        xfer_list.remDesc(3)


def test_index_of_a_missing_row_raises(api, xfer_list):
    with pytest.raises(api.nixlNotFoundError):
        xfer_list.index((9, 9, 9))


def test_remote_descs_have_their_agent_name(api, agent):
    made = agent.get_remote_descs([(1, 2, 3, "peer")], "DRAM")
    assert isinstance(made, api.nixlRemoteDList)
    assert agent.get_remote_descs(made) is made


# -- pickling ----------------------------------------------------------------


def wire(mem_type, rows):
    """A transfer list's bytes, as NIXL writes them."""
    out = grammar.PREFIX + grammar.put(b"nixlDList", b"nixlBDList")
    out += grammar.put(b"t", struct.pack("=i", mem_type))
    out += grammar.put(b"n", struct.pack("=Q", len(rows)))
    if rows:
        flat = b"".join(struct.pack("=QQQ", *row) for row in rows)
        out += grammar.put(b"", flat)
    return out


def reg_wire(mem_type, rows):
    out = grammar.PREFIX + grammar.put(b"nixlDList", b"nixlSDList")
    out += grammar.put(b"t", struct.pack("=i", mem_type))
    out += grammar.put(b"n", struct.pack("=Q", len(rows)))
    for row in rows:
        out += grammar.put(b"", struct.pack("=QQQ", *row[:3]) + row[3])
    return out


def state_of(lists):
    """The bytes that unpickling passes to the class."""
    return lists.__getstate__()


def test_list_state_has_nixls_bytes(api, xfer_list, reg_list):
    assert state_of(xfer_list) == wire(0, ROWS)
    assert state_of(reg_list) == reg_wire(0, REG_ROWS)
    assert state_of(api.nixlXferDList(api.VRAM_SEG)) == wire(1, [])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_lists_survive_pickling(xfer_list, reg_list, protocol):
    for made in (xfer_list, reg_list):
        copy = pickle.loads(pickle.dumps(made, protocol))
        assert type(copy) is type(made)
        assert copy == made
        assert rows_of(copy) == rows_of(made)


def test_serialized_lists_round_trip(agent, xfer_list, reg_list):
    for made in (xfer_list, reg_list):
        blob = agent.get_serialized_descs(made)
        assert isinstance(blob, bytes)
        assert agent.deserialize_descs(blob) == made


@pytest.fixture
def refused(api):
    """The exception classes raised for bytes that are not a list."""
    return (api.NixlError, ValueError, TypeError, pickle.UnpicklingError)


class Bomb:
    """Runs code when a pickle of it is loaded without restrictions."""

    def __reduce__(self):
        return (exec, ("import support; support.bomb = True",))


@pytest.mark.beyond_stock
def test_deserializing_never_runs_code(agent, refused):
    import support

    bombs = [
        pickle.dumps(Bomb()),
        pickle.dumps([Bomb()]),
        pickle.dumps(print),
        b"cposix\nsystem\n(S'true'\ntR.",
        b"cbuiltins\nexec\n(S'import support; support.bomb = 1'\ntR.",
    ]
    for bomb in bombs:
        with pytest.raises(refused):
            agent.deserialize_descs(bomb)
        assert not hasattr(support, "bomb")


@pytest.mark.beyond_stock
@pytest.mark.parametrize("kind", ["xfer_list", "reg_list"])
def test_cut_serialized_lists_are_refused(agent, refused, request, kind):
    blob = agent.get_serialized_descs(request.getfixturevalue(kind))
    for end in range(len(blob)):
        with pytest.raises(refused):
            agent.deserialize_descs(blob[:end])


@pytest.mark.beyond_stock
@pytest.mark.parametrize("kind", ["xfer_list", "reg_list"])
def test_damaged_serialized_lists_are_refused_or_valid(
    api, agent, refused, request, kind
):
    """Change each byte in three ways."""
    made = request.getfixturevalue(kind)
    blob = agent.get_serialized_descs(made)
    for at, change in itertools.product(range(len(blob)), (1, 0x41, 0xFF)):
        damaged = bytearray(blob)
        damaged[at] ^= change
        with contextlib.suppress(refused):
            got = agent.deserialize_descs(bytes(damaged))
            assert isinstance(got, (api.nixlXferDList, api.nixlRegDList))
    assert agent.deserialize_descs(blob) == made


@pytest.mark.beyond_stock
def test_lists_of_stock_agents_are_read(api, agent):
    """From every NIXL package that the peer may use."""
    for package in ("nixl_cu12", "nixl_cu13", "nixl"):
        blob = stock_pickle(package, "nixlXferDList", wire(0, ROWS))
        assert rows_of(agent.deserialize_descs(blob)) == ROWS
        blob = stock_pickle(package, "nixlRegDList", reg_wire(0, REG_ROWS))
        assert rows_of(agent.deserialize_descs(blob)) == REG_ROWS


def stock_pickle(package, name, state):
    """The opcodes of stock's pickle of a list."""
    out = io.BytesIO()
    out.write(b"\x80\x04")
    for text in (f"{package}._bindings", name):
        out.write(b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94")
    out.write(b"\x93\x94)\x81\x94")
    out.write(b"B" + struct.pack("<I", len(state)) + state + b"\x94b.")
    return out.getvalue()


# -- torch -------------------------------------------------------------------


def test_torch_tensors_become_lists(agent):
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(16, 32)
    made = agent.get_xfer_descs(tensor)
    assert rows_of(made) == [(tensor.data_ptr(), 16 * 32 * 4, 0)]
    made = agent.get_reg_descs([tensor, tensor])
    assert made.descCount() == 2
