"""`python -m headscope`: the command line, where the script `headscope` is not on the path.

PyTorch is imported before it by then, so threads wait as `OMP_WAIT_POLICY` says (see `headscope_command`).
"""

from headscope.cli import main

if __name__ == "__main__":
    main()
