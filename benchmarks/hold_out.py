"""Splits text into training and held-out documents: every 50th document is held out.

    python benchmarks/hold_out.py OUTPUT_DIR FILE [FILE ...]

Writes OUTPUT_DIR/train.txt and OUTPUT_DIR/heldout.txt.
"""

import pathlib
import sys

from kbert.corpus.text_sources import find_inputs, read_lines, split_into_pieces


def main(output_dir, *files):
    """Writes both files, with an empty line between documents."""
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    documents, lines = 0, []
    with open(folder / "train.txt", "wb") as train, open(folder / "heldout.txt", "wb") as heldout:
        for piece in split_into_pieces(find_inputs(",".join(files))):
            for line in read_lines(piece):
                if line:
                    lines.append(line)
                elif lines:
                    documents += 1
                    (train if documents % 50 else heldout).write(b"\n".join(lines) + b"\n\n")
                    lines = []
    print(f"{documents} documents, {documents // 50} of them held out, in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
