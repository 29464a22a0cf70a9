"""Keys and values of the tokens that a decoder has processed, so that only new tokens are computed.

Shape suffixes: B rows, T new tokens, L tokens so far, G key and value heads, K head size.
"""

import torch
from torch import Tensor


class LayerCache:
    """Cache of one block: keys and values of earlier tokens, and those of the encoder's output.

    Attributes:
        memory: keys and values of the encoder's output, (B, G, S, K) each, once the block has computed them.
    """

    def __init__(self) -> None:
        self.memory: tuple[Tensor, Tensor] | None = None
        self._keys = _Columns()
        self._values = _Columns()

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Appends T tokens; returns the keys and values of all tokens, (B, G, L, K) each."""
        return self._keys.extend(k_BGTK), self._values.extend(v_BGTK)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, which may repeat, in this order; `memory` is unchanged."""
        self._keys.select(rows)
        self._values.select(rows)

    def select_memory(self, rows: Tensor) -> None:
        """Keeps these sources."""
        if self.memory is not None:
            keys, values = (each.index_select(0, rows) for each in self.memory)
            self.memory = (keys, values)


class _Columns:
    """A tensor (B, G, L, K) that grows along L, in a larger buffer."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._length = 0

    def extend(self, new_BGTK: Tensor) -> Tensor:
        """Appends T columns; returns all columns, (B, G, L, K)."""
        n_rows, n_heads, n_new, head_size = new_BGTK.shape
        start, self._length = self._length, self._length + n_new
        if self._buffer is None or self._length > self._buffer.shape[2]:
            # The size doubles, so that all copies together cost about as much as one copy of the final buffer.
            larger = new_BGTK.new_empty(n_rows, n_heads, 2 * self._length, head_size)
            if self._buffer is not None:
                larger[:, :, :start] = self._buffer[:, :, :start]
            self._buffer = larger
        self._buffer[:, :, start : self._length] = new_BGTK
        return self._buffer[:, :, : self._length]

    def select(self, rows: Tensor) -> None:
        if self._buffer is not None:
            self._buffer = self._buffer.index_select(0, rows)  # unused columns, too: cheaper than a new buffer


class Cache:
    """Caches of all blocks, and the padding of rows. Rows of different lengths end together: padding is on the left.

    Args:
        n_layers: blocks of the decoder.
        padding_B: (B,) int64, columns of padding at the left of each row.

    Attributes:
        layers: the cache of each block.
        length: columns so far, padding included.
    """

    def __init__(self, n_layers: int, padding_B: Tensor) -> None:
        self.layers = [LayerCache() for _ in range(n_layers)]
        self.length = 0
        self._padding_B = padding_B
        self._document_BL: Tensor | None = None

    def advance(self, n_tokens: int) -> Tensor:
        """Adds new columns; returns their positions, (B, T) int64, counted from each row's first token."""
        columns_T = torch.arange(self.length, self.length + n_tokens, device=self._padding_B.device)
        self.length += n_tokens
        return (columns_T - self._padding_B.unsqueeze(1)).clamp(min=0)

    def visible(self, n_tokens: int) -> Tensor:
        """(B, 1, T, L) bool: the columns that the last T columns may attend to: not later, and no padding.

        A column of padding attends to itself, as attention over nothing is not a number.
        """
        columns_L = torch.arange(self.length, device=self._padding_B.device)
        queries_T1 = columns_L[-n_tokens:].unsqueeze(1)
        real_B1L = (columns_L >= self._padding_B.unsqueeze(1)).unsqueeze(1)
        return ((columns_L <= queries_T1) & real_B1L | (columns_L == queries_T1)).unsqueeze(1)

    def same_document(self, tokens_BT: Tensor, end_of_text: int) -> Tensor:
        """(B, 1, T, L) bool: the columns in the same document as each of the last T; see `document_mask`."""
        document_BT = (tokens_BT == end_of_text).cumsum(dim=1)
        if self._document_BL is not None:
            document_BT = document_BT + self._document_BL[:, -1:]
            self._document_BL = torch.cat((self._document_BL, document_BT), dim=1)
        else:
            self._document_BL = document_BT
        return (document_BT.unsqueeze(2) == self._document_BL.unsqueeze(1)).unsqueeze(1)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, which may repeat, in this order."""
        self._padding_B = self._padding_B[rows]
        self._document_BL = None if self._document_BL is None else self._document_BL[rows]
        for layer in self.layers:
            layer.select(rows)

    def select_memory(self, rows: Tensor) -> None:
        """Keeps these sources."""
        for layer in self.layers:
            layer.select_memory(rows)
