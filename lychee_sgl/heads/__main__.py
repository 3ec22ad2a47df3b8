"""`python -m lychee_sgl.heads`: the same as `lychee-sgl heads`, with nothing installed but the trainer's needs."""

from lychee_sgl.heads.cli import app
from lychee_sgl.terminal import run

run(app)
