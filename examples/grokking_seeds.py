"""Modular addition by the recipe from several seeds: when the shown sums were known, when the held-out ones followed.

python examples/grokking_seeds.py --seeds 5    # a minute or so for each
"""

import argparse

from headscope.training import fourier_power, toy_task, train


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    print("seed  99 % of shown  99 % of held out  held out at the end  frequencies for 95 %")
    for seed in range(parser.parse_args().seeds):
        task = toy_task("modular-addition", seed=seed, device="cpu")
        result = train(task.model, task.data, task.training, validation=task.validation, progress=False)
        assert result.validation is not None
        power = fourier_power(task.model.W_E[: task.data.options["p"]]).sort(descending=True).values
        few = f"{int((power.cumsum(0) < 0.95).sum()) + 1} of {len(power)}"
        print(
            f"{seed:>4}  {result.train.reached()!s:>13}  {result.validation.reached()!s:>16}  "
            f"{result.final.accuracy:>19.2%}  {few:>20}",
            flush=True,
        )


if __name__ == "__main__":
    main()
