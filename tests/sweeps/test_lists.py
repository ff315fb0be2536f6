import pytest

from rnn_lm.sweeps import chain, choice, log_uniform, product, seeds, zip


def test_the_algebra_of_sweeps():
    a, b = choice("a", [1, 2]), choice("b", "xyz")
    assert product(a, b) == [{"a": i, "b": x} for i in (1, 2) for x in "xyz"]
    assert product(product(a, b), seeds(2)) == product(a, b, seeds(2))  # associative
    assert product() == [{}] and product(a, [{}]) == a  # the unit
    assert product(a, []) == [] == chain()
    assert zip(a, choice("b", "xy")) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert chain(a, b) == [*a, *b]
    assert product(chain(a, b), seeds(2)) == chain(product(a, seeds(2)), product(b, seeds(2)))  # distributive
    assert seeds(3) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]


def test_what_comes_out_can_be_changed_without_changing_what_went_in():
    a = choice("a", [1])
    for made in (chain(a), product(a), zip(a)):
        made[0]["a"] = 2
    assert a == [{"a": 1}]


def test_log_uniform_draws_what_its_name_says():
    values = [member["x"] for member in log_uniform("x", 1e-4, 1e-1, 4000)]
    assert 1e-4 <= min(values) and max(values) <= 1e-1
    for decade in (1e-4, 1e-3, 1e-2):
        assert sum(decade <= value < 10 * decade for value in values) == pytest.approx(4000 / 3, rel=0.1)
    assert [member["x"] for member in log_uniform("x", 1e-4, 1e-1, 3)] == values[:3]
    assert log_uniform("x", 1e-4, 1e-1, 3, seed=1) != log_uniform("x", 1e-4, 1e-1, 3)
    assert all(len(f"{value:.4g}") >= len(f"{value:g}") for value in values)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: product(choice("a", [1]), choice("a", [2])), "a is set by two"),
        (lambda: zip(choice("a", [1]), choice("a", [2])), "a is set by two"),
        (lambda: zip(choice("a", [1]), choice("b", [1, 2])), "these have 1, 2 members"),
        (lambda: log_uniform("a", 0, 1, 2), "0 < low"),
        (lambda: log_uniform("a", 2, 1, 2), "0 < low"),
    ],
)
def test_what_does_not_go_together_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
