"""What stands beside and above what: tables as the generator draws them, shapes in rows."""

from PIL import Image

from bench.demo_model.neighbours import neighbours, table_columns
from erase import synthetic
from erase.synthetic.canvas import around
from erase.synthetic.sample import Box, Mark, Question, Sample


def scene(*shapes: tuple[str, float, float], kind: str = "position") -> Sample:
    """Shapes 20 pixels wide and high by their centres."""
    marks = tuple(Mark("shape", name, Box(x - 10, y - 10, x + 10, y + 10)) for name, x, y in shapes)
    question = Question("What shape is left of the star?", "moon", (), kind)
    return Sample("scene", "general", Image.new("RGB", (224, 224)), (question,), marks)


class TestShapes:
    def test_every_shape_is_linked_to_its_nearest_on_the_left_and_above(self):
        sample = scene(("star", 20, 20), ("moon", 62, 23), ("ring", 100, 18), ("cross", 22, 60), ("heart", 64, 61))
        star, moon, ring, cross, heart = (mark.box.centre for mark in sample.marks)
        assert set(neighbours(sample)) == {
            (star, moon, True),
            (moon, ring, True),
            (cross, heart, True),
            (star, cross, False),
            (moon, heart, False),
        }

    def test_shapes_that_stand_askew_are_nobodys_neighbours(self):
        assert list(neighbours(scene(("star", 20, 20), ("moon", 60, 45)))) == []

    def test_without_a_question_about_neighbours_there_are_no_rows(self):
        assert list(neighbours(scene(("star", 20, 20), ("moon", 60, 20), kind="color"))) == []


def tables() -> list[Sample]:
    """Every document with a table among the first of the training split, in three sizes."""
    drawn = (
        synthetic.sample("documents", "train", index, size=size)
        for index in range(40)
        for size in ((224, 224), (448, 336), (616, 784))
    )
    return [sample for sample in drawn if any(len(question.evidence) == 3 for question in sample.questions)]


class TestTables:
    def test_the_cells_that_questions_ask_about_are_where_their_evidence_is(self):
        found = 0
        for sample in tables():
            columns = table_columns([mark for mark in sample.marks if mark.kind == "glyph"])
            places = {
                around([mark.box for mark in text]): (row, column)
                for column, texts in enumerate(columns)
                for row, text in enumerate(texts)
            }
            for question in sample.questions:
                if len(question.evidence) == 3:
                    name, head, cell = (places[box] for box in question.evidence)
                    assert (name, head) == ((cell[0], 0), (0, cell[1])), (sample.name, question.text)
                    found += 1
        assert found > 50

    def test_cells_are_linked_to_the_name_beside_them_and_the_head_above_them(self):
        for sample in tables()[:12]:
            links = list(neighbours(sample))
            assert links
            for first, second, beside in links:
                assert first[0] < second[0] if beside else first[1] < second[1]

    def test_of_a_large_table_no_more_than_sixteen_cells_are_linked(self):
        counts = []
        for sample in tables():
            columns = table_columns([mark for mark in sample.marks if mark.kind == "glyph"])
            linked = {second for _, second, _ in neighbours(sample)}
            cells = [text for column in columns[1:] for text in column[1:]]
            counts.append((len(cells), sum(any(mark.box.centre in linked for mark in text) for text in cells)))
        assert all(linked == cells for cells, linked in counts if cells <= 16)
        assert all(8 < linked <= 16 for cells, linked in counts if cells > 16)
        assert any(cells > 16 for cells, _ in counts)

    def test_what_is_no_table_has_no_columns(self):
        letters = [Mark("glyph", "a", Box(10 * place, 0, 10 * place + 8, 20)) for place in range(5)]
        assert table_columns(letters) == []
        assert table_columns([]) == []
