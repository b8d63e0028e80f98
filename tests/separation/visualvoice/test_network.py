"""VisualVoice as a whole: published sizes, variants, padding, missing pictures, precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import metrics
from separation.visualvoice import config, faces, network, spectra, unet
from tests.separation.visualvoice import tiny as examples
from tests.separation.visualvoice.tiny import HOP, SAMPLES, cues, initialised, sound, tiny

PUBLISHED = {
    "lip_net": 8_879_980,
    "face_net": 11_242_176,
    "voice_net": 11_239_040,
    "unet": 46_135_682,
}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("changes", "unet_size"),
    [
        ({}, PUBLISHED["unet"]),
        ({"enhancement": True}, PUBLISHED["unet"]),
        ({"context": True}, 49_088_900),
        # The first convolution up of 3 x 3 taps and 512 channels has fewer to read.
        ({"lip": False}, PUBLISHED["unet"] - 512 * 9 * 512),
        ({"face": False}, PUBLISHED["unet"] - 128 * 9 * 512),
        # And two masks in place of one: two more channels of 128 x 4 x 4, and their biases.
        (
            {"lip": False, "face": False},
            PUBLISHED["unet"] - (512 + 128) * 9 * 512 + 2 * (128 * 16 + 1),
        ),
        # Three linear maps of all channels, and a LayerNorm.
        ({"attention_heads": 8}, PUBLISHED["unet"] + 3 * 1152 * 1153 + 2 * 1152),
    ],
)
def test_the_published_sizes(changes, unet_size):
    sizes = config.VisualVoiceConfig(**changes)
    net = network.VisualVoice(sizes)
    people = sizes.voices
    given = {}
    if sizes.lip:
        given["mouth"] = jnp.zeros((1, people, 64, 88, 88))
        given["mouth_present"] = jnp.ones((1, people, 64), bool)
    if sizes.face:
        given["faces"] = jnp.zeros((1, people, 1, 224, 224, 3))
        given["face_present"] = jnp.ones((1, people, 1), bool)
    voices, variables = jax.eval_shape(
        lambda key: net.init_with_output(key, jnp.zeros((1, 40800)), jnp.array([40800]), **given),
        jax.random.key(0),
    )
    assert voices.shape == (1, people, 40800)
    found = {name: count(tree) for name, tree in variables["params"].items()}
    expected = {**PUBLISHED, "unet": unet_size}
    if not sizes.lip:
        del expected["lip_net"]
    if not sizes.face:
        del expected["face_net"]
    assert found == expected


def test_the_published_shapes():
    """257 x 256 without the top bin; 1152 channels at 64 steps of one bin."""
    sizes = config.VisualVoiceConfig()
    audio, lengths = jax.ShapeDtypeStruct((1, 40800), jnp.float32), jnp.array([40800])
    frames = spectra.num_frames(lengths, sizes)
    parts = jax.eval_shape(lambda x: spectra.parts(spectra.analysed(x, frames, sizes)), audio)
    assert parts.shape == (1, 256, 256, 2)
    assert frames.tolist() == [256]
    assert sizes.fused_size == 1152
    assert config.VisualVoiceConfig(context=True).fused_size == 1792
    module = unet.UNet(sizes)

    def masks(key):
        cues = jnp.zeros((1, 1, 64, 640))
        masks, variables = module.init_with_output(
            key, jnp.zeros(parts.shape), frames, cues, train=False
        )
        return masks, variables["params"]["up1"]["conv"]["conv"]["kernel"]

    found, first_up = jax.eval_shape(masks, jax.random.key(0))
    assert found.shape == (1, 1, 256, 256, 2)
    assert first_up.shape == (3, 3, 1152, 512)


def test_wrong_sizes_are_said():
    with pytest.raises(ValueError, match="num_fft=512, but 2 unet_widths halve 16 bins to 1"):
        tiny(num_fft=512)
    with pytest.raises(ValueError, match=r"window_ms=1 and hop_ms=0\.625: every sample"):
        tiny(window_ms=1.0)
    with pytest.raises(ValueError, match="dtype='half' is unknown"):
        tiny(dtype="half")
    with pytest.raises(ValueError, match="lip_stages and lip_units differ in length"):
        tiny(lip_units=(1,))
    with pytest.raises(ValueError, match="even, because units split them"):
        tiny(lip_stages=(3, 4))
    with pytest.raises(ValueError, match="context=True needs lip=True or face=True"):
        tiny(lip=False, face=False, context=True)
    with pytest.raises(ValueError, match="context=True is of two voices"):
        tiny(context=True, enhancement=True)
    with pytest.raises(ValueError, match="attention_heads=2 does not divide the 19 channels"):
        tiny(attention_heads=2)
    with pytest.raises(ValueError, match="attention_heads=-1 does not divide"):
        tiny(attention_heads=-1)
    with pytest.raises(ValueError, match=r"dropout=1\.5: from 0 to below 1"):
        tiny(dropout=1.5)
    with pytest.raises(ValueError, match="need 0 < window_size <= num_fft and hop_size > 0"):
        tiny(window_ms=3.0)


def separate(net):
    def run(variables, audio, lengths, given):
        return net.apply(variables, audio, lengths, **given)

    return jax.jit(run)


@pytest.fixture(scope="module")
def full():
    """Lips and faces: the network, its variables, and its separation compiled."""
    net, variables = initialised(tiny())
    return net, variables, separate(net)


VARIANTS = {
    "published": {},
    "attention": {"attention_heads": 1},
    "context": {"context": True},
    "enhancement": {"enhancement": True},
    "lip only": {"face": False},
    "face only": {"lip": False},
    "audio only": {"lip": False, "face": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_order_have_no_effect(name):
    """Each row of a batch, of other lengths and with rubbish behind, comes out as alone."""
    sizes = tiny(**VARIANTS[name])
    net, variables = initialised(sizes)
    run = separate(net)
    people = sizes.voices
    audio, given = sound(3), cues(sizes, 3, people, pictures=2)
    lengths = jnp.array([SAMPLES, 13 * HOP + 3, 0])
    if sizes.face:
        given["face_present"] = given["face_present"].at[1, 0, 1].set(False)
        given["faces"] = given["faces"].at[1, 0, 1].set(jnp.nan).at[2].set(jnp.nan)
    if sizes.lip:
        given["mouth"] = given["mouth"].at[1, :, 4:].set(jnp.nan).at[2].set(jnp.nan)
    audio = audio.at[1, 13 * HOP + 3 :].set(jnp.nan)
    found = run(variables, audio, lengths, given)
    assert found.shape == (3, people, SAMPLES)
    assert np.isfinite(found[:2]).all()
    assert np.abs(found[:2, :, : 13 * HOP]).max() > 1e-3
    if people == 2:
        assert np.abs(found[:2, 0] - found[:2, 1]).max() > 1e-4
    assert not found[1, :, 13 * HOP + 3 :].any()

    def rows(of, tree):
        return jax.tree.map(lambda x: x[of], tree)

    turned = run(variables, *rows(np.array([2, 1, 0]), (audio, lengths, given)))
    np.testing.assert_allclose(turned[::-1][:2], found[:2], atol=1e-5)
    one, size, own = rows(slice(1, 2), (audio, lengths, given))
    if sizes.lip:
        own["mouth"], own["mouth_present"] = own["mouth"][:, :, :4], own["mouth_present"][:, :, :4]
    alone = run(variables, one[:, : 13 * HOP + 3], size, own)
    np.testing.assert_allclose(found[1, :, : 13 * HOP + 3], alone[0], atol=1e-5)
    if sizes.together == 1 and people == 2:
        swapped = {k: v if v is None else v[:, ::-1] for k, v in given.items()}
        swapped = run(variables, audio, lengths, swapped)
        np.testing.assert_allclose(swapped[:2, ::-1], found[:2], atol=1e-5)


def test_any_number_of_people_and_levels(full):
    net, variables, run = full
    audio, given, lengths = sound(1), cues(net.config, 1, 3), jnp.array([SAMPLES])
    three = run(variables, audio, lengths, given)
    first = run(variables, audio, lengths, {k: v[:, :1] for k, v in given.items()})
    np.testing.assert_allclose(three[:, :1], first, atol=1e-5)
    louder = run(variables, 7 * audio, lengths, given)
    np.testing.assert_allclose(louder, 7 * three, atol=1e-4)


def test_the_mean_of_face_embeddings(full):
    """Of k pictures, those that are there; of one, its own, which is the published."""
    net, variables, _ = full

    @jax.jit
    def embed(pictures, present):
        return net.apply(variables, pictures, present, train=False, method="faces")

    pictures = cues(net.config, 1, 1, pictures=3)["faces"]
    there = jnp.ones((1, 1, 3), bool)
    each = [embed(pictures, there & (jnp.arange(3) == i).reshape(1, 1, 3)) for i in range(3)]
    resnet = {k: variables[k]["face_net"]["resnet"] for k in variables}
    alone = faces.ResNet18(net.config).apply(resnet, pictures[0, 0], jnp.full(3, 16), train=False)
    np.testing.assert_allclose(jnp.concatenate(each)[:, 0], alone, atol=1e-5)
    np.testing.assert_allclose(embed(pictures, there)[0, 0], alone.mean(axis=0), atol=1e-5)
    two = there.at[0, 0, 1].set(False)
    broken = pictures.at[0, 0, 1].set(jnp.nan)
    np.testing.assert_allclose(embed(broken, two)[0, 0], alone[::2].mean(axis=0), atol=1e-5)
    assert not embed(broken, jnp.zeros_like(there)).any()
    blurred = jnp.broadcast_to(pictures.mean(axis=2, keepdims=True), pictures.shape)
    assert np.abs(embed(blurred, there) - embed(pictures, there)).max() > 1e-3


def test_missing_mouths(full):
    """Pictures that are not present have no effect, and others speak for them."""
    net, variables, run = full
    audio, given, lengths = sound(1), cues(net.config, 1, 2), jnp.array([SAMPLES])
    whole = run(variables, audio, lengths, given)
    holes = {**given, "mouth_present": given["mouth_present"].at[0, 0, 2:4].set(False)}
    some = run(variables, audio, lengths, holes)
    assert np.abs(some - whole)[0, 0].max() > 1e-5
    np.testing.assert_allclose(some[0, 1], whole[0, 1], atol=1e-6)
    broken = {**holes, "mouth": given["mouth"].at[0, 0, 2:4].set(jnp.nan)}
    np.testing.assert_array_equal(run(variables, audio, lengths, broken), some)

    @jax.jit
    def lips(mouth, present):
        return net.apply(variables, mouth, present, jnp.array([24]), train=False, method=net.lips)

    none = lips(given["mouth"], jnp.zeros_like(given["mouth_present"]))
    assert not none.any()
    found = lips(broken["mouth"], holes["mouth_present"])
    assert np.isfinite(found).all()
    assert np.abs(found[0, 0, 2:4]).max() > 1e-3
    # Without any picture of a mouth the face alone still says who is wanted.
    given["mouth_present"] = jnp.zeros_like(given["mouth_present"])
    voices = run(variables, audio, lengths, given)
    assert np.isfinite(voices).all()
    assert np.abs(voices[0, 0] - voices[0, 1]).max() > 1e-5


def test_a_mask_of_one_gives_the_mixture_back():
    sizes = tiny()
    audio, lengths = sound(2), jnp.array([SAMPLES, 150])
    frames = spectra.num_frames(lengths, sizes)
    audio = jnp.where(jnp.arange(SAMPLES)[None] < lengths[:, None], audio, 0.0)
    spectrum = spectra.analysed(audio, frames, sizes)
    ones = jnp.zeros((2, spectrum.shape[1], 16, 2)).at[..., 0].set(1.0)
    back = spectra.synthesised(spectra.masked(ones, spectrum), frames, lengths, sizes, SAMPLES)
    np.testing.assert_allclose(back, audio, atol=1e-5)
    level = spectra.at_level(audio, lengths)
    np.testing.assert_allclose(np.sqrt(np.mean(level[1, :150] ** 2)), 0.1, rtol=1e-5)
    assert not spectra.at_level(jnp.zeros((1, 9)), jnp.array([9])).any()
    a, b = np.array([1 + 2j, -0.5j]), np.array([0.3 - 1j, 4 + 1j])
    product = spectra.product(*(jnp.stack([x.real, x.imag], -1) for x in (a, b)))
    np.testing.assert_allclose(product[:, 0] + 1j * product[:, 1], a * b, rtol=1e-6)


def test_bfloat16_is_near(full):
    net, variables, run = full
    audio, given, lengths = sound(2), cues(net.config, 2, 2), jnp.array([SAMPLES, SAMPLES])
    expected = run(variables, audio, lengths, given)
    short = network.VisualVoice(dataclasses.replace(net.config, dtype="bfloat16"))
    found = separate(short)(variables, audio, lengths, given)
    assert found.dtype == jnp.float32
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-6 < error < 0.05


@pytest.mark.slow
def test_gradients_of_bfloat16_and_remat_agree(full):
    """Rematerialised gradients are the same; those of bfloat16 point much the same way.

    Not quite, because what a maximum or a ReLU lets through changes with the last bits: 0.92.
    """
    variables = full[1]
    sizes = full[0].config
    given = examples.batch(sizes)

    def gradients(sizes):
        net = network.VisualVoice(sizes)

        @jax.jit
        def run(params):
            def loss(params):
                shown = {**variables, "params": params}
                terms, stats = examples.terms(net, shown, given, examples.keys(2))
                value = metrics.of_terms(terms)["loss"]
                return value.total / value.count, stats

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, stats), found = run(variables["params"])
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((stats, found)))
        return loss, np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    loss, found = gradients(sizes)
    again, kept = gradients(dataclasses.replace(sizes, remat=True))
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    np.testing.assert_allclose(kept, found, atol=1e-5 * np.abs(found).max())
    rough, short = gradients(dataclasses.replace(sizes, dtype="bfloat16", remat=True))
    np.testing.assert_allclose(rough, loss, rtol=0.02)
    cosine = found @ short / np.linalg.norm(found) / np.linalg.norm(short)
    assert cosine > 0.85
