import pytest
import torch
from torch.nn import functional as F

from kasmina.adapters.torch.hosts import ConvHost, GPTHost, HostProtocol, InjectionPoint
from kasmina.domain.stages import Topology


@pytest.fixture(autouse=True)
def repeatable():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


def conv():
    return ConvHost(), torch.randn(4, 1, 8, 8), torch.randint(0, 10, (4,))


def gpt():
    return GPTHost(), torch.randint(0, 64, (4, 32)), torch.randint(0, 64, (4, 32))


def loss(host, inputs, targets):
    return F.cross_entropy(host(inputs).flatten(0, -2), targets.flatten())


def parameters(host):
    return sum(parameter.numel() for parameter in host.parameters())


@pytest.mark.parametrize("make", [conv, gpt])
class TestEveryHost:
    def test_each_point_is_where_it_says_with_the_width_it_says(self, make):
        host, inputs, _ = make()
        points: HostProtocol = host
        widths = {}
        for name, point in points.injection_points().items():
            channel = 1 if point.topology is Topology.CNN else -1
            host.get_submodule(point.path).register_forward_hook(
                lambda _m, _i, out, name=name, channel=channel: widths.update(
                    {name: out.shape[channel]}
                )
            )
        host(inputs)
        expected = {name: point.width for name, point in points.injection_points().items()}
        assert widths == expected
        assert list(widths) == list(expected)  # from input to output

    def test_it_learns(self, make):
        host, inputs, targets = make()
        optimizer = torch.optim.Adam(host.parameters(), lr=1e-2)
        first = loss(host, inputs, targets)
        for _ in range(8):
            optimizer.zero_grad()
            loss(host, inputs, targets).backward()
            optimizer.step()
        assert loss(host, inputs, targets) < 0.7 * first

    def test_every_parameter_receives_a_gradient(self, make):
        host, inputs, targets = make()
        loss(host, inputs, targets).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in host.parameters())

    def test_it_compiles_to_one_graph(self, make):
        torch.compiler.reset()
        host, inputs, _ = make()
        compiled = torch.compile(host.eval(), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(inputs), host(inputs))

    def test_its_state_dict_round_trip_is_strict(self, make):
        host, inputs, _ = make()
        other, _, _ = make()
        other.load_state_dict(host.state_dict(), strict=True)
        assert torch.equal(other.eval()(inputs), host.eval()(inputs))


class TestConvHost:
    def test_the_default_is_small(self):
        assert parameters(ConvHost()) == 5178

    def test_its_points_are_its_stages(self):
        assert ConvHost(channels=(4, 6, 8)).injection_points() == {
            f"stage{index}": InjectionPoint(
                path=f"stages.{index}", topology=Topology.CNN, width=width
            )
            for index, width in enumerate((4, 6, 8))
        }

    def test_images_of_any_size_and_depth_become_logits(self):
        host = ConvHost(inputs=3, channels=(4, 6, 8), classes=7)
        assert host(torch.randn(2, 3, 17, 9)).shape == (2, 7)

    def test_its_statistics_run_in_training(self):
        host, images, _ = conv()
        before = {name: buffer.clone() for name, buffer in host.named_buffers()}
        host(images)
        assert len(before) == 6
        assert not any(torch.equal(before[name], now) for name, now in host.named_buffers())

    def test_dropout_acts_in_training_only(self):
        host, images = ConvHost(dropout=0.5), torch.randn(4, 1, 8, 8)
        assert not torch.equal(host(images), host(images))
        assert torch.equal(host.eval()(images), host(images))


class TestGPTHost:
    def test_the_default_is_small(self):
        assert parameters(GPTHost()) == 106_240

    def test_its_points_are_its_blocks(self):
        assert GPTHost(width=8, heads=2, depth=3).injection_points() == {
            f"block{index}": InjectionPoint(
                path=f"blocks.{index}", topology=Topology.TRANSFORMER, width=8
            )
            for index in range(3)
        }

    def test_no_position_sees_a_later_token(self):
        host, tokens, _ = gpt()
        later = tokens.clone()
        later[:, 20:] = (later[:, 20:] + 1) % 64
        torch.testing.assert_close(host(later)[:, :20], host(tokens)[:, :20])
        assert not torch.allclose(host(later)[:, 20:], host(tokens)[:, 20:])

    def test_shorter_sequences_fit(self):
        host, tokens, _ = gpt()
        torch.testing.assert_close(host(tokens[:, :5]), host(tokens)[:, :5])

    def test_the_head_is_tied_unless_asked_otherwise(self):
        tied, untied = GPTHost(tied=True), GPTHost(tied=False)
        assert tied.head.weight is tied.tokens.weight
        assert untied.head.weight is not untied.tokens.weight
        assert parameters(untied) - parameters(tied) == 64 * 64

    def test_a_new_one_guesses_evenly(self):
        host, tokens, targets = gpt()
        assert loss(host, tokens, targets).item() == pytest.approx(4.16, abs=0.1)  # log of 64

    def test_dropout_acts_in_training_only(self):
        host, tokens = GPTHost(dropout=0.2), torch.randint(0, 64, (2, 8))
        assert not torch.equal(host(tokens), host(tokens))
        assert torch.equal(host.eval()(tokens), host(tokens))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"path": ""}, "path must not be blank"), ({"width": 0}, "width must be finite and above 0")],
)
def test_an_injection_point_is_valid_when_built(wrong, message):
    right = {"path": "stages.0", "topology": Topology.CNN, "width": 8}
    with pytest.raises(ValueError, match=message):
        InjectionPoint(**(right | wrong))
