"""``python -m merganser``."""

from merganser.cli import main

if __name__ == "__main__":
    main(prog_name="merganser")
