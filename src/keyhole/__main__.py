"""``python -m keyhole``, and ``torchrun -m keyhole`` for several processes."""

from keyhole.cli import main

if __name__ == "__main__":
    main()
