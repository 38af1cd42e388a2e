"""`python -m polypersona`: the command line where the package is on the path, but not installed, as in a Ray job."""

from polypersona.cli.main import main

if __name__ == "__main__":
    main()
