"""``python -m detcam``."""

from detcam.cli.main import main

if __name__ == "__main__":
    main()
