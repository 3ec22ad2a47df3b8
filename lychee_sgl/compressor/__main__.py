"""`python -m lychee_sgl.compressor`: the same as `lychee-sgl compressor`, with only the trainer's needs installed."""

from lychee_sgl.compressor.cli import app
from lychee_sgl.terminal import run

run(app)
