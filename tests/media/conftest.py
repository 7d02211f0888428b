"""The small videos of `clips.KINDS`, each written when first asked for."""

import pytest

from tests.media.clips import KINDS, write


class Videos:
    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, name):
        path = self.folder / name
        return path if path.exists() else write(path, **KINDS[name])


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    return Videos(tmp_path_factory.mktemp("videos"))
