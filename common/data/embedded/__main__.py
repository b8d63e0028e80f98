"""`python -m common.data.embedded --out DIR --hours H`: see tree.py."""

from common.data.embedded import tree

if __name__ == "__main__":
    tree.main()
