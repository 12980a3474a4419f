import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.errors import UsageError
from supernet.space import BLOCK_GENES


def test_size_counts_each_subnet_once(make_space):
    tiny = make_space(
        image_size=(8,), embed_dim=(16,), depth=(1, 2), num_heads=(2,), mlp_ratio=(1, 2), high_precision_ratio=(0, 1)
    )
    per_block = 2 * 2**4
    assert tiny.size == per_block + per_block**2
    everything = tiny.canonical(np.array(list(np.ndindex(*tiny.gene_sizes))))
    assert len(np.unique(everything, axis=0)) == tiny.size
    assert len({tiny.decode(genotype).digest for genotype in np.unique(everything, axis=0)}) == tiny.size


def test_a_genotype_names_its_genes(space):
    assert space.gene_names[:4] == ("image_size", "embed_dim", "depth", "blocks.0.num_heads")
    assert len(space.gene_names) == len(space.gene_sizes) == 3 + 3 * len(BLOCK_GENES)


@given(seed=st.integers(0, 2**32 - 1))
def test_genotypes_and_subnets_are_the_same_thing(make_space, seed):
    space = make_space()
    for genotype in space.sample(np.random.default_rng(seed), 3):
        np.testing.assert_array_equal(space.encode(space.decode(genotype)), genotype)


@given(seed=st.integers(0, 2**32 - 1), probability=st.floats(0.01, 1))
def test_variation_stays_in_the_space_and_canonical(make_space, seed, probability):
    space, rng = make_space(), np.random.default_rng(seed)
    first, second = space.sample(rng, 8), space.sample(rng, 8)
    for children in (space.mutate(first, rng, probability=probability), space.crossover(first, second, rng)):
        assert children.shape == first.shape
        assert ((children >= 0) & (children < space.gene_sizes)).all()
        np.testing.assert_array_equal(space.canonical(children), children)


def test_sampling_is_uniform_over_the_choices_of_a_gene(space):
    genotypes = space.sample(np.random.default_rng(1), 6000)
    for gene in (0, 1, 2, 3):  # those are active in every subnet
        counts = np.bincount(genotypes[:, gene], minlength=space.gene_sizes[gene])
        assert np.abs(counts / 6000 - 1 / space.gene_sizes[gene]).max() < 0.03


def test_only_the_generator_decides(space):
    state = np.random.get_state()[1].copy()
    one, two = (space.sample(np.random.default_rng(5), 4) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_crossover_takes_every_gene_from_a_parent(space, rng):
    low = np.zeros((50, len(space.gene_sizes)), dtype=np.int64)
    low[:, 2] = 2  # deepest, so that all genes are active
    high = np.repeat(space.encode(space.largest())[None], 50, axis=0)
    children = space.crossover(low, high, rng)
    assert ((children == low) | (children == high)).all()
    assert 0.4 < (children == high)[:, 3:].mean() < 0.7


def test_mutation_changes_about_the_share_asked_for(space, rng):
    start = np.repeat(space.encode(space.largest())[None], 500, axis=0)
    changed = (space.mutate(start, rng, probability=0.3)[:, 0] != start[:, 0]).mean()
    assert changed == pytest.approx(0.3 * 0.5, abs=0.05)  # half of the redraws hit the same of two choices


def test_smallest_and_largest(space):
    smallest, largest = space.smallest(), space.largest()
    assert (smallest.image_size, smallest.embed_dim, smallest.depth) == (6, 12, 1)
    assert (largest.image_size, largest.embed_dim, largest.depth) == (8, 16, 3)
    assert set(largest.blocks[0].high_precision_ratios) == {1}


def test_choices_are_kept_in_order_and_spaces_compare(make_space):
    assert make_space(depth=(3, 1, 2)) == make_space()
    assert make_space(depth=(3, 1, 2)).digest == make_space().digest != make_space(depth=(1, 2)).digest


def test_heads_can_follow_the_width(make_space):
    space = make_space(num_heads="embed")
    assert space.largest().blocks[0].num_heads == 4
    assert space.smallest().blocks[0].num_heads == 3
    for genotype in space.sample(np.random.default_rng(0), 20):
        np.testing.assert_array_equal(space.encode(space.decode(genotype)), genotype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": ()}, "depth: the list of choices is empty"),
        ({"embed_dim": (16, 16)}, "embed_dim: a choice is listed twice"),
        ({"image_size": (7,)}, "patch_size 2 does not divide 7"),
        ({"num_heads": "embed", "embed_dim": (16, 18)}, "18 is not a multiple of head_dim 4"),
        ({"high_precision_ratio": (0, 1.5)}, r"shares of rows must lie in \[0, 1\]"),
        ({"mlp_ratio": (0, 2)}, "mlp_ratio: every choice must be positive"),
        ({"weight_bits": (8, 4)}, "weight_bits"),
        ({"act_bits": 4}, "act_bits"),
        ({"num_classes": 0}, "num_classes must be positive"),
    ],
)
def test_impossible_spaces(make_space, changes, message):
    with pytest.raises(UsageError, match=message):
        make_space(**changes)


def test_encode_names_the_dimension_outside(space, make_space):
    outside = make_space(mlp_ratio=(3,)).smallest()
    with pytest.raises(UsageError, match=r"blocks\[0\]\.mlp_ratio is 3.*the space has \[1\.5, 2\]"):
        space.encode(outside)
