"""``python -m detcam``."""

from detcam.cli import main

if __name__ == "__main__":
    main()
