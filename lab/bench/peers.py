"""Language models of other libraries in our decoder's shape, for its speed to be measured against.

Each has the same layers, width and heads, and within 1 % as many parameters that are no embeddings: SwiGLU of our inner
width where the library has it, else GELU of four times the width. No dropout; attention is torch's own causal one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from lab.models.decoder import inner_width
from lab.models.sizes import Shape


class Peer(NamedTuple):
    """A model to be trained beside ours."""

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    """From tokens [B, T] to logits [B, T, V]."""
    unembedding: nn.Module


class Library(NamedTuple):
    """The library that a peer comes from."""

    module: str | None
    """Name that its package is imported by; None for our own lines."""
    package: str
    """Name that it is installed by."""
    build: Callable[[Shape, int, int], Peer]
    """From a shape, the tokens of the vocabulary and the positions of a row."""


def nanogpt(shape: Shape, vocabulary: int, context: int) -> Peer:
    """nanoGPT's model (github.com/karpathy/nanoGPT, model.py with bias=False), in as few lines."""
    model = _NanoGPT(shape, vocabulary, context)
    return Peer(model, model, model.unembedding)


def litgpt(shape: Shape, vocabulary: int, context: int) -> Peer:
    """litgpt's model as it is configured for Llama."""
    from litgpt.config import Config
    from litgpt.model import GPT

    model = GPT(
        Config(
            block_size=context,
            vocab_size=vocabulary,
            padded_vocab_size=vocabulary,
            n_layer=shape.layers,
            n_embd=shape.width,
            n_head=shape.attention_heads,
            bias=False,
            parallel_residual=False,
            rotary_percentage=1.0,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=inner_width(shape.width),
        )
    )
    model.apply(model._init_weights)
    return Peer(model, model, model.lm_head)


def gpt2(shape: Shape, vocabulary: int, context: int) -> Peer:
    """Hugging Face's GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=context,
            n_layer=shape.layers,
            n_embd=shape.width,
            n_head=shape.attention_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **_HUGGING_FACE,
        )
    )
    return Peer(model, lambda tokens_BT: model(tokens_BT).logits, model.lm_head)


def llama(shape: Shape, vocabulary: int, context: int) -> Peer:
    """Hugging Face's Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=context,
            num_hidden_layers=shape.layers,
            hidden_size=shape.width,
            num_attention_heads=shape.attention_heads,
            intermediate_size=inner_width(shape.width),
            **_HUGGING_FACE,
        )
    )
    return Peer(model, lambda tokens_BT: model(tokens_BT).logits, model.lm_head)


_HUGGING_FACE: dict[str, Any] = {
    "attn_implementation": "sdpa",
    "use_cache": False,
    "bos_token_id": None,  # those of the pretrained vocabulary lie outside of ours
    "eos_token_id": None,
}


def x_transformers(shape: Shape, vocabulary: int, context: int) -> Peer:
    """x-transformers' decoder with what its documentation recommends: rotary positions, RMSNorm, SwiGLU, flash."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.width,
        depth=shape.layers,
        heads=shape.attention_heads,
        attn_dim_head=shape.width // shape.attention_heads,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=shape.width // shape.attention_heads,
        verbose=False,
        use_rmsnorm=True,
        ff_mult=inner_width(shape.width) / shape.width,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
    )
    model = TransformerWrapper(num_tokens=vocabulary, max_seq_len=context, attn_layers=layers, use_abs_pos_emb=False)
    return Peer(model, model, model.to_logits)


PEERS = {
    "nanogpt": Library(None, "mtp-lab", nanogpt),
    "litgpt": Library("litgpt", "litgpt", litgpt),
    "transformers-gpt2": Library("transformers", "transformers", gpt2),
    "transformers-llama": Library("transformers", "transformers", llama),
    "x-transformers": Library("x_transformers", "x-transformers", x_transformers),
}
"""The peers there are, by name."""


class NotInstalled(Exception):
    """A peer's library is missing; says what to do."""


def build_peer(name: str, shape: Shape, vocabulary: int, context: int) -> Peer:
    """One of `PEERS`.

    Raises:
        NotInstalled: its library is missing, or what that needs.
    """
    library = PEERS[name]
    try:
        return library.build(shape, vocabulary, context)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        needed = "" if module == library.module else f"{module} is missing; "
        raise NotInstalled(f"not installed: {needed}pip install {library.package}") from None
    except ImportError as error:
        raise NotInstalled(f"cannot be imported: {error}") from None


def inner_parameters(peer: Peer) -> list[nn.Parameter]:
    """All parameters but those of embeddings (of positions too) and the unembedding."""
    outer = [peer.unembedding, *(each for each in peer.model.modules() if isinstance(each, nn.Embedding))]
    left_out = {id(parameter) for each in outer for parameter in each.parameters()}
    return [each for each in peer.model.parameters() if id(each) not in left_out]


def flops_per_token(peer: Peer, shape: Shape, vocabulary: int, context: int) -> int:
    """Those of training, counted as `lab.objectives.flops` counts ours."""
    products = sum(each.numel() for each in inner_parameters(peer) if each.dim() >= 2) + vocabulary * shape.width
    return 3 * (2 * products + shape.layers * 4 * context * shape.width)


class _NanoGPT(nn.Module):
    def __init__(self, shape: Shape, vocabulary: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Embedding(context, shape.width)
        self.blocks = nn.Sequential(*(_NanoBlock(shape.width, shape.attention_heads) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.unembedding = nn.Linear(shape.width, vocabulary, bias=False)
        for name, each in self.named_parameters():
            if each.dim() == 2:
                residual = name.endswith("output.weight")
                nn.init.normal_(each, std=0.02 / (2 * shape.layers) ** 0.5 if residual else 0.02)
        self.unembedding.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        return self.unembedding(self.norm(self.blocks(x_BTD)))  # type: ignore[no-any-return]


class _NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width, bias=False)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.feedforward_output = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.inputs(self.attention_norm(x_BTD)).chunk(3, dim=-1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in qkv)
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.attention_output(mixed_BHTK.transpose(1, 2).flatten(2))
        return x_BTD + self.feedforward_output(F.gelu(self.hidden(self.feedforward_norm(x_BTD))))  # type: ignore[no-any-return]
