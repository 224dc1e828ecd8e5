"""Peers that were attached, with the lists that they published."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would take as long as all the rest
if TYPE_CHECKING:
    from ._core import _Attached, nixl_prepped_dlist_handle, nixlXferDList


class Peer(str):
    """A peer, as NixlAgent.attach() returns it.

    It is the peer's name: a str to pass to every call that takes the name of
    an agent.  In addition, it has the lists that the peer published.

    It describes one generation of the peer.  When the peer has restarted,
    transfers from these lists raise nixlRemoteDisconnectError; attach again.

    It keeps the agent alive that attached it.  A pickle or a copy of it is
    the name alone, a plain str.
    """

    __slots__ = ("_lists",)
    _lists: dict[str, tuple[nixl_prepped_dlist_handle, nixlXferDList]]

    def __new__(cls, attached: _Attached) -> Peer:
        name, lists = attached
        self = super().__new__(cls, name)
        self._lists = lists
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the lists, in the order of publish()."""
        return tuple(self._lists)

    def _list(
        self, name: str
    ) -> tuple[nixl_prepped_dlist_handle, nixlXferDList]:
        try:
            return self._lists[name]
        except KeyError:
            raise KeyError(
                f"peer {str(self)!r} published no list {name!r}, "
                f"but {', '.join(map(repr, self._lists)) or 'none'}"
            ) from None

    def rows(self, name: str) -> nixl_prepped_dlist_handle:
        """Return the prepared list of that name, for make_prepped_xfer().

        The same handle each time: it was prepared by attach().  Do not
        release it.  KeyError gives the names that exist.
        """
        return self._list(name)[0]

    def descs(self, name: str) -> nixlXferDList:
        """Return the descriptors of that name: (address, length, device id).

        A new list each time, for initialize_xfer() and to compute other rows
        from it.  KeyError gives the names that exist.
        """
        return self._list(name)[1].__copy__()

    def __repr__(self) -> str:
        return f"<Peer {str(self)!r}: {', '.join(self._lists) or 'no lists'}>"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)
