import pytest

from videolm.video.numbered import kinds


@pytest.fixture(scope="session")
def make(tmp_path_factory):
    """The numbered file of this name, written when it is first asked for."""
    folder = tmp_path_factory.mktemp("kinds")
    by_file = {kind.file: kind for kind in kinds()}

    def made(name):
        path = folder / name
        if not path.exists():
            by_file[name].make(path)
        return path

    return made
