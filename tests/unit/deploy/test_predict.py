from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from flowers.deploy.predict import PredictionRow, make_row_writer
from flowers.runtime.text import read_csv


@given(
    st.lists(st.sampled_from(["path", "class", "probability", "abstain", "reason", "engine", "_a", "a"]), unique=True)
)
def test_make_row_writer_gives_each_column_a_name_of_its_own(names: list[str]):
    with TemporaryDirectory() as folder:
        writer = make_row_writer(f"{folder}/a.csv", rejects=True, engine="int8")
        row = PredictionRow("1.jpg", "a", 1.0, dict.fromkeys(names, 0.5), False, "", 0.1)
        assert writer([row], names) == 1
        heading, cells = read_csv(f"{folder}/a.csv")
    assert len({*heading}) == len(heading) == len(cells)
