"""Trajectory: access, parts, merges and every error."""

import pytest
import torch

from latent_layers.inversion.trajectory import ModelFamily, Trajectory, descending

LEVELS = [14.6146, 7.5, 3.25, 1.5, 0.4, 0.0]
FAMILY = ModelFamily("SD15", 4, "EPS", 14.6146)


class Halved:
    def process_in(self, latent):
        return latent * 2

    def process_out(self, latent):
        return latent / 2


@pytest.fixture
def trajectory() -> Trajectory:
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(2, 4, 9, 5, generator=generator) for _ in LEVELS]
    return Trajectory(torch.tensor(LEVELS), latents, FAMILY, Halved())


def test_describes_itself(trajectory):
    assert (trajectory.steps, trajectory.batch, trajectory.size) == (5, 2, (9, 5))
    assert trajectory.shape == (2, 4, 9, 5)
    assert trajectory.nbytes == 6 * 2 * 4 * 9 * 5 * 4
    assert trajectory.sigmas.dtype == torch.float32
    assert torch.equal(trajectory.sigmas, torch.tensor(LEVELS))
    assert trajectory.noisiest is trajectory.latents[0] and trajectory.clean is trajectory.latents[-1]
    assert "5 steps" in repr(trajectory)


def test_sigmas_are_a_copy(trajectory):
    trajectory.sigmas[-1] = 0.001  # as the host's uni_pc does
    assert trajectory.sigmas[-1] == 0


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("factor", [1.0, 1 + 5e-6, 1 - 5e-6])
def test_schedule_points_are_exact(trajectory, position, factor):
    assert trajectory.at(LEVELS[position] * factor) is trajectory.latents[position]


def test_float32_logarithms_still_hit_points(trajectory):
    for position, sigma in enumerate(torch.tensor(LEVELS[:-1])):
        assert trajectory.at(float(sigma.log().exp())) is trajectory.latents[position]


def test_almost_clean_is_clean(trajectory):
    assert trajectory.at(0.0001) is trajectory.clean


def test_interpolates_linearly_in_sigma(trajectory):
    z, noise = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    line = Trajectory(LEVELS, [z + level * noise for level in LEVELS])
    for sigma in (13.0, 5.0, 2.0, 0.01):
        torch.testing.assert_close(line.at(sigma), z + sigma * noise)
    middle = trajectory.at((7.5 + 3.25) / 2)
    torch.testing.assert_close(middle, (trajectory.latents[1] + trajectory.latents[2]) / 2)


@pytest.mark.parametrize("sigma", [14.7, 999999999.9, -1.0])
def test_outside_its_range(trajectory, sigma):
    with pytest.raises(ValueError, match="outside its range"):
        trajectory.at(sigma)


def test_steps_count_from_the_picture(trajectory):
    assert trajectory.at_step(0) is trajectory.clean
    assert trajectory.at_step(5) is trajectory.noisiest
    assert trajectory.at_step(1) is trajectory.latents[4]
    assert torch.equal(trajectory.latent_at_step(2), trajectory.latents[3] / 2)
    for step in (-1, 6):
        with pytest.raises(ValueError, match=f"step is {step}.*0 .*to 5"):
            trajectory.at_step(step)


def test_without_a_format_x_is_the_latent():
    x = torch.zeros(1, 4, 2, 2)
    assert Trajectory([0.0], [x]).latent_at_step(0) is x


def test_part_shares_latents(trajectory):
    low = trajectory.part(high=3.25)
    assert low.sigmas.tolist() == pytest.approx([3.25, 1.5, 0.4, 0.0])
    assert all(mine is theirs for mine, theirs in zip(low.latents, trajectory.latents[2:], strict=True))
    assert low.family is FAMILY and low.latent_format is trajectory.latent_format
    assert trajectory.part(high=7.5 * (1 - 1e-6), low=1.5 * (1 + 1e-6)).sigmas.tolist() == [7.5, 3.25, 1.5]
    assert trajectory.part(low=1.0).sigmas.tolist() == pytest.approx(LEVELS[:4])
    with pytest.raises(ValueError, match="no point"):
        trajectory.part(high=3.0, low=2.0)


def test_continued_replaces_from_a_sigma_on(trajectory):
    new = [torch.ones(2, 4, 9, 5), torch.zeros(2, 4, 9, 5)]
    edited = trajectory.continued([3.25 * (1 - 1e-6), 1.5], new)
    assert edited.sigmas.tolist() == pytest.approx([14.6146, 7.5, 3.25, 1.5], rel=1e-5)
    assert edited.latents[:2] == trajectory.latents[:2]
    assert edited.latents[2] is new[0] and edited.latents[3] is new[1]
    assert trajectory.steps == 5  # itself unchanged


def test_clean_needs_sigma_zero(trajectory):
    with pytest.raises(ValueError, match=r"ends at σ 0.4, it has no clean latent"):
        _ = trajectory.part(low=0.3).clean


@pytest.mark.parametrize(
    ("sigmas", "count", "message"),
    [
        ([], 0, "one latent per sigma"),
        ([1.0, 0.0], 1, "2 sigmas for 1 latents"),
        ([0.0, 1.0], 2, "strictly descending"),
        ([1.0, 1.0], 2, "strictly descending"),
    ],
)
def test_refuses_inconsistent_sigmas(sigmas, count, message):
    with pytest.raises(ValueError, match=message):
        Trajectory(sigmas, [torch.zeros(1, 4, 2, 2)] * count)


def test_refuses_inconsistent_latents():
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="all must be alike"):
        Trajectory([1.0, 0.0], [x, torch.zeros(1, 4, 2, 3)])
    with pytest.raises(ValueError, match="float32"):
        Trajectory([1.0, 0.0], [x, x.half()])


def test_check_schedule_accepts_the_schedule_and_its_parts(trajectory):
    trajectory.check_schedule(torch.tensor(LEVELS), "Sample: sigmas")
    trajectory.check_schedule(torch.tensor(LEVELS[2:4]), "Sample: sigmas")
    upper = trajectory.part(low=1.5)
    upper.check_schedule([1.5, 0.9, 0.2, 0.0], "Sample: sigmas")  # below its end it is free


@pytest.mark.parametrize("sigmas", [[14.6146, 6.0, 0.0], [7.0, 3.25], [20.0, 14.6146]])
def test_check_schedule_refuses_others(trajectory, sigmas):
    with pytest.raises(ValueError, match=r"^Sample: sigmas: σ .* is not a point of the trajectory .*nearest"):
        trajectory.check_schedule(sigmas, "Sample: sigmas")


def test_check_schedule_needs_a_start(trajectory):
    with pytest.raises(ValueError, match="is not a point"):
        trajectory.part(low=1.5).check_schedule([0.4, 0.0], "Sample: sigmas")


def test_check_size(trajectory):
    trajectory.check_size((2, 4, 9, 5), "Keep Source: trajectory")
    single = Trajectory([0.0], [torch.zeros(1, 4, 9, 5)])
    single.check_size((3, 4, 9, 5), "Keep Source: trajectory")
    with pytest.raises(ValueError, match=r"Keep Source: trajectory: latents are 9×5 latent pixels.*5×9"):
        trajectory.check_size((2, 4, 5, 9), "Keep Source: trajectory")
    with pytest.raises(ValueError, match="3 latent.s. in the batch, 2 in the trajectory"):
        trajectory.check_size((3, 4, 9, 5), "Keep Source: trajectory")
    with pytest.raises(ValueError, match="16 channels"):
        trajectory.check_size((2, 16, 9, 5), "Keep Source: trajectory")


def test_check_model(trajectory):
    trajectory.check_model(ModelFamily("SD15", 4, "EPS", 14.6150), "Sample: guider")
    Trajectory([0.0], [torch.zeros(1, 4, 9, 5)]).check_model(FAMILY, "Sample: guider")
    for other in (
        ModelFamily("SDXL", 4, "EPS", 14.6146),
        ModelFamily("SD15", 16, "EPS", 14.6146),
        ModelFamily("SD15", 4, "V_PREDICTION", 14.6146),
        ModelFamily("SD15", 4, "EPS", 4518.0),
    ):
        with pytest.raises(ValueError, match=r"^Sample: guider: the model is of another family .*invert the picture"):
            trajectory.check_model(other, "Sample: guider")


def test_descending_takes_either_direction():
    schedule = torch.tensor(LEVELS)
    assert descending(schedule, "Invert: sigmas") == schedule.tolist()
    flipped = schedule.flip(0)
    flipped[0] = 0.0001  # what FlipSigmas does
    assert descending(flipped, "Invert: sigmas") == schedule.tolist()
    assert descending([0.03, 2.0], "Invert: sigmas") == [2.0, 0.03]


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "has 0 value"),
        ([1.0], "has 1 value"),
        ([3.0, 1.0, 2.0, 0.0], "not strictly monotonic: 1 is followed by 2"),
        ([3.0, 3.0, 0.0], "not strictly monotonic"),
        ([3.0, -1.0], "negative or non-finite"),
        ([float("nan"), 1.0], "negative or non-finite"),
    ],
)
def test_descending_refuses(sigmas, message):
    with pytest.raises(ValueError, match=rf"^Invert: sigmas.*{message}"):
        descending(torch.tensor(sigmas), "Invert: sigmas")


def test_the_predicted_picture_lies_on_the_line_through_two_points():
    """An Euler step goes straight towards the model's prediction: x = z + σ·ε with ε fixed from point to point."""
    z, noise = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7)
    sigmas = [9.0, 4.0, 1.5, 0.6]
    trajectory = Trajectory(sigmas, [z + sigma * noise for sigma in sigmas])
    for step in range(3):
        assert torch.allclose(trajectory.predicted(step), z, atol=1e-4)
    assert torch.allclose(trajectory.predicted(3), z, atol=1e-4)  # nothing above it: the line to the one below
    finished = trajectory.continued([0.6, 0.0], [trajectory.at(0.6), z])
    assert torch.equal(finished.predicted(), z)
