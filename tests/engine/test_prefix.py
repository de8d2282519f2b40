from prelude_proxy.engine.prefix import PrefixCache


def test_only_an_unbroken_beginning_hits():
    """The first unknown block ends the hit; the caller bounds it too."""
    cache = PrefixCache(8)
    cache.insert((1, 2, 3))
    assert cache.hit_blocks((1, 2, 3), 9) == 3
    assert cache.hit_blocks((1, 2, 3), 2) == 2
    assert cache.hit_blocks((1, 9, 3), 9) == 1
    assert cache.hit_blocks((7, 2, 3), 9) == 0


def test_the_least_recently_used_is_forgotten():
    """Room is bounded; a hit counts as use."""
    cache = PrefixCache(3)
    cache.insert((1, 2))
    cache.insert((3,))
    assert cache.hit_blocks((1,), 9) == 1
    cache.insert((4,))
    assert cache.hit_blocks((2,), 9) == 0
    assert cache.hit_blocks((1,), 9) == cache.hit_blocks((3,), 9) == cache.hit_blocks((4,), 9) == 1


def test_a_prompt_is_forgotten_from_its_end():
    """A block is of no use without those before it, so the first block goes last."""
    cache = PrefixCache(4)
    cache.insert((1, 2, 3))
    cache.insert((9, 8))
    assert cache.hit_blocks((1, 2, 3), 9) == 2
    cache.insert((7,))
    assert cache.hit_blocks((9, 8), 9) == 1
