"""Stand-ins for modules: what is there meanwhile, and that nobody misses anything afterwards."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from tunnelmux.light_imports import StandIn, hidden

NAME = "this"  # of the standard library, and imported by nobody


@pytest.fixture(autouse=True)
def _not_imported():
    sys.modules.pop(NAME, None)
    yield
    sys.modules.pop(NAME, None)


def run(*lines: str) -> str:
    """What these lines print in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_stand_in_loads_the_real_module_when_it_is_used(capsys):
    stand_in = StandIn(NAME, given="ours")
    sys.modules[NAME] = stand_in
    assert stand_in.given == "ours"
    assert sys.modules[NAME] is stand_in
    assert stand_in.c == 97
    assert sys.modules[NAME] is not stand_in
    assert (stand_in.given, stand_in.__dict__["i"]) == ("ours", sys.modules[NAME].i)
    assert "Zen of Python" in capsys.readouterr().out


def test_what_every_module_is_asked_for_is_no_use_of_it():
    stand_in = StandIn(NAME)
    sys.modules[NAME] = stand_in
    assert not hasattr(stand_in, "__file__")
    assert not hasattr(stand_in, "__warningregistry__")
    assert sys.modules[NAME] is stand_in


def test_a_name_that_the_real_module_has_not_is_an_attribute_error(capsys):
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = StandIn(NAME).no_such_name
    capsys.readouterr()


def test_hidden_modules_are_there_again_after_the_block():
    with hidden({NAME: None, "sys": None}):
        with pytest.raises(ImportError):
            __import__(NAME)
        assert sys.modules["sys"] is sys  # what is there already stays
    assert NAME not in sys.modules


def test_what_came_in_place_of_a_stand_in_stays():
    real = ModuleType(NAME)
    with hidden({NAME: StandIn(NAME)}):
        sys.modules[NAME] = real
    assert sys.modules[NAME] is real


def test_others_find_the_whole_modules_after_an_agents_imports():
    printed = run(
        "import tunnelmux.cli.agent, tunnelmux.light_imports, sys",
        "with tunnelmux.light_imports.light_imports():",
        "    import trio, tunnelmux.agent",
        "assert '_ssl' not in sys.modules and '_hashlib' not in sys.modules",
        "import bz2, ctypes.util, decimal, hashlib, hmac, idna, importlib.metadata, lzma, pickle",
        "import ssl, uuid",
        "assert decimal.Decimal('0.1') * 3 == decimal.Decimal('0.3') and uuid.uuid4().version == 4",
        "assert trio._socket._idna.encode('straße', uts46=True) == b'xn--strae-oqa'",
        "assert hashlib.pbkdf2_hmac('sha256', b'p', b's', 1) and hashlib.new('sha512_256')",
        "assert hmac.new(b'k', b'm', 'sha256').hexdigest()",
        "assert importlib.metadata.version('trio') == trio.__version__",
        "assert pickle.loads(pickle.dumps(7)) == 7 and ctypes.CDLL(None)",
        "context = ssl.create_default_context()",
        "assert ssl.SSLContext is sys.modules['ssl'].SSLContext is type(context)",
        "assert isinstance(context, trio._ssl._stdlib_ssl.SSLContext)",
        "assert trio.run(trio.to_thread.run_sync, lambda: 7) == 7",
        "print('fine')",
    )
    assert printed == "fine"


def test_a_program_that_uses_the_library_keeps_its_ssl():
    printed = run(
        "import tunnelmux, sys",
        "from tunnelmux import connect",
        "assert '_ssl' in sys.modules and sys.modules['ssl'].__file__",
        "print('fine')",
    )
    assert printed == "fine"
