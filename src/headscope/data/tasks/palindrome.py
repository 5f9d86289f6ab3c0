"""The palindrome task: does a row of symbols read the same backwards? It needs positions, to compare places."""

import torch

from headscope.data.tasks.base import TaskDataset, new_generator, settled
from headscope.errors import check_at_least

__all__ = ["PalindromeDataset"]


class PalindromeDataset(TaskDataset):
    """Rows of `2 * half` symbols and a query token; the answer is 1 for a palindrome, 0 for any other row.

    Half of the rows are palindromes. The others are palindromes with one or more symbols of the second half replaced
    (their number is uniform on 1 to `half`), so that a mostly symmetric row gives nothing away. A replaced symbol
    always differs from the original, so no such row is a palindrome: every answer follows from its prompt, `bayes_loss`
    is 0 and `bayes_accuracy` 1.

    Args:
        size: Number of rows.
        half: Symbols in half a row.
        n_symbols: Number of symbols, tokens 0 to `n_symbols - 1`; token `n_symbols` is the query.
        seed: Seed of the draw; the global generator is untouched.

    Raises:
        InvalidInputError: If `size` or `half` is below 1, `n_symbols` below 2, or the seed out of range.

    Example:
        >>> data = PalindromeDataset(3, half=3, n_symbols=4, seed=1)
        >>> for tokens, label in data:
        ...     print(tokens.tolist(), label.tolist())
        [1, 3, 0, 1, 3, 3, 4] [0]
        [0, 3, 1, 0, 2, 2, 4] [0]
        [3, 1, 3, 3, 1, 3, 4] [1]
    """

    task = "palindrome"

    def __init__(self, size: int, half: int = 4, n_symbols: int = 8, seed: int = 0) -> None:
        check_at_least(1, size=size, half=half)
        check_at_least(2, n_symbols=n_symbols)
        generator = new_generator(seed)

        def draw(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator, device="cpu")

        first = draw(0, n_symbols, size, half)
        palindrome = draw(0, 2, size).bool()
        n_replaced = draw(1, half + 1, size)
        # A random order of each row's places: the first `n_replaced` are replaced. Adding 1 to n_symbols - 1 modulo
        # n_symbols gives any symbol but the original.
        rank = torch.rand(size, half, generator=generator, device="cpu").argsort(dim=1)
        replaced = (rank < n_replaced[:, None]) & ~palindrome[:, None]
        second = (first.flip(1) + replaced * draw(1, n_symbols, size, half)) % n_symbols
        labels = palindrome.long()[:, None]
        super().__init__(
            tokens=torch.cat([first, second, torch.full((size, 1), n_symbols, device="cpu")], dim=1),
            labels=labels,
            answer_positions=range(2 * half, 2 * half + 1),
            d_vocab=n_symbols + 1,
            options={"size": size, "half": half, "n_symbols": n_symbols, "seed": seed},
            **settled(labels),
        )
