"""Libraries that only some steps need, imported on first use; and the languages they support."""

import importlib
import importlib.metadata
from functools import cache
from types import ModuleType

from data.errors import InputError, install_command

INSTALL = install_command("text")


def library(module: str, needed_by: str) -> ModuleType:
    """Imports a library.

    Raises:
        InputError: it is not installed; names the step that needs it and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{needed_by} needs {module}, which is not installed here ({error}): {INSTALL}") from None


@cache
def version_of(module: str) -> str | None:
    """The version of an installed library; None where it is not installed."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return None


_IDENTIFIED = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga
gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij
ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so
sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx
"""

_WITH_STOP_WORDS = """
af ar bg bn br ca cs da de el en eo es et eu fa fi fr ga gl gu ha he hi hr hu hy id it ko ku la lt lv mr ms nl no pl
pt ro ru sk sl so st sv sw tl tr uk ur vi yo zh zu
"""

_WITH_LEMMAS = """
ar ast bg ca cs cy da de el en enm eo es et fa fi fr ga gd gl grc gv hbs he hi hu hy id is it ka la lb lt lv mk ml ms
nb nl nn pl pt ro ru se sk sl sq sv sw tl tr uk
"""

IDENTIFIED = frozenset(_IDENTIFIED.split())
"""Languages that py3langid identifies."""

WITH_STOP_WORDS = frozenset(_WITH_STOP_WORDS.split())
"""Languages with a list in stopwordsiso, without Japanese and Thai, whose words cannot be separated here."""

WITH_LEMMAS = frozenset(_WITH_LEMMAS.split())
"""Languages with a dictionary in simplemma."""
