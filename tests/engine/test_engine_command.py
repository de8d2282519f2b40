"""`prelude-proxy engine` as a process."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest
from click.testing import CliRunner

from prelude_proxy.commands.engine import engine


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_exit_code_0(number):
    """It says where it listens, and a signal is a normal end, with a stream in the air."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "prelude_proxy.engine", "--port", "0", "--max-num-seqs", "2",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    port = int(line.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"model":"tiny","prompt":"x","stream":true,"vllm_xargs":{"target_len":5000}}'
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await reader.readuntil(b"data: ")
    process.send_signal(number)
    _, errors = await process.communicate()
    writer.close()
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "h900"], "neither one of vllm-cpu-tiny"),
        (["--num-gpu-blocks-override", "10"], "cannot hold one request"),
        (["--max-num-seqs", "0"], "max_num_seqs must be at least 1"),
        (["--max-num-batched-tokens", "8"], "must be at least max_num_seqs"),
    ],
)
def test_limits_that_make_no_engine_exit_with_2(arguments, message):
    """The reason is on stderr, in one line."""
    result = CliRunner().invoke(engine, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_profile_file_that_is_no_profile_is_named(tmp_path):
    """Broken JSON, a list, an unknown field."""
    path = tmp_path / "profile.json"
    for text, message in (("{", "Expecting"), ("[]", "object"), ('{"speed": 1}', "unknown field 'speed'")):
        path.write_text(text)
        result = CliRunner().invoke(engine, ["--profile", str(path)])
        assert result.exit_code == 2
        assert message in result.stderr
