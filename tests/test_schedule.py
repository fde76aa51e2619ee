"""The schedule of a training: the weight of the rate, and the three parts."""

from vae import schedule


def test_weight_of_the_rate(small):
    """It rises linearly from 0 to 1 over kl_warmup_epochs, then stays 1. A fraction is allowed. 0 means always 1."""
    config = small(train={"kl_warmup_epochs": 2.0}).train
    assert [schedule.kl_weight(config, epoch) for epoch in (0, 0.5, 1, 2, 3)] == [0, 0.25, 0.5, 1, 1]
    config = small(train={"kl_warmup_epochs": 0.5}).train
    assert [schedule.kl_weight(config, epoch) for epoch in (0, 0.25, 0.5, 9)] == [0, 0.5, 1, 1]
    config = small(train={"kl_warmup_epochs": 0.0}).train
    assert schedule.kl_weight(config, 0) == 1


def test_weight_of_the_rate_still_rises_in_the_last_part(small):
    config = small(train={"epochs": 2, "refine_epochs": 3, "kl_warmup_epochs": 4.0}).train
    found = schedule.Schedule(config, learned_prior=False)
    steps = [step for epoch in range(found.epochs) for step in found.of_epoch(epoch, 1)]
    assert [step.beta for step in steps] == [0, 0.25, 0.5, 0.75, 1]


def test_one_sample_between_two_times_with_more(small):
    """As many epochs at the start as at the end have all samples. If these meet, all steps have. The steps of the prior
    alone have all samples too."""

    def samples(epochs: int, important: float) -> list[int]:
        train = {"epochs": epochs, "prior_epochs": 1, "importance_samples": 3, "importance_epochs": important}
        found = schedule.Schedule(small(train=train).train, learned_prior=True)
        return [step.samples for epoch in range(found.epochs) for step in found.of_epoch(epoch, 4)]

    assert samples(2, 0.5) == [3, 3, 1, 1, 1, 1, 3, 3] + 4 * [3]
    assert samples(2, 0.0) == 8 * [1] + 4 * [3]
    assert samples(1, 0.5) == samples(1, 7.0) == 8 * [3]


def test_the_cost_of_a_step_at_any_time(small):
    train = {"epochs": 2, "prior_epochs": 1, "importance_samples": 4, "importance_epochs": 0.25, "refine_epochs": 1}
    found = schedule.Schedule(small(train=train | {"refine_importance_samples": 32}).train, learned_prior=True)
    times = (0.0, 0.2, 0.3, 1.0, 1.7, 1.8, 2.0, 3.5)
    assert [found.relative_cost(time) for time in times] == [1, 1, 0.25, 0.25, 0.25, 1, schedule.PRIOR_COST, 8]


def test_three_parts(small):
    """First the whole model is trained, and the share of augmented images falls. Then a learned prior is trained alone.
    Then the whole model is trained on more samples, without augmentation."""
    parts = {"epochs": 2, "prior_epochs": 1, "refine_epochs": 1, "importance_samples": 2, "augmentation": 0.5}
    refined = {"refine_importance_samples": 7, "refine_rate": 0.25}
    plain = {"schedule": "constant", "warmup_steps": 0, "kl_warmup_epochs": 0.0}
    config = small(train=parts | refined | plain).train
    first = [schedule.Step(1, 1, samples=2, moved=moved) for moved in (0.5, 0.375, 0.25, 0.125)]
    alone, last = schedule.Step(0, 1, samples=2, prior_alone=True), schedule.Step(0.25, 0.25, samples=7)
    for learned_prior, expected in [(True, [*first, alone, alone, last, last]), (False, [*first, last, last])]:
        found = schedule.Schedule(config, learned_prior)
        assert [step for epoch in range(found.epochs) for step in found.of_epoch(epoch, 2)] == expected
