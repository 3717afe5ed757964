"""The formulas of `cookbook.fused` with their gradients written out: fewer passes over memory than by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LOSS_ROWS = 256  # positions whose scores over the vocabulary are held in fp32 at once


class Frozen(NamedTuple):
    """Of a linear layer under LoRA: W, or a function that gives it unpacked for a product; bias; s."""

    weight: Any
    bias: torch.Tensor | None
    scale: float


class Lora(Function):
    """y = x W' + bias + s (x A') B': W (out, in) frozen, A (rank, in) and B (out, rank) trained (Hu et al. 2021).

    Of one layer, or of several that read the same x: their products with A are one, and so is that of x's gradient
    with them. `trained` is A and B of the first layer, A and B of the second, and so on; there is a y for each.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layers: Sequence[Frozen], *trained: torch.Tensor) -> tuple[Any, ...]:
        rows = x.reshape(-1, x.shape[-1])
        low, ups = _factors(trained, x.dtype)
        inner = rows @ low.t()
        ctx.layers, ctx.ranks = layers, [len(a) for a in trained[::2]]
        ctx.save_for_backward(x, inner, *trained)
        outs = []
        for (weight, bias, scale), up, part in zip(layers, ups, inner.split(ctx.ranks, dim=1), strict=True):
            out = _product(rows, _as(weight, x.dtype).t(), bias)
            outs.append(out.addmm_(part, up.t(), alpha=scale).view(*x.shape[:-1], -1))
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, inner, *trained = ctx.saved_tensors
        low, ups = _factors(trained, x.dtype)
        rows, down = x.reshape(-1, x.shape[-1]), torch.empty_like(inner)
        grads = [grad.to(x.dtype).reshape(-1, grad.shape[-1]) for grad in grads]
        to_b, grad_x = [], None
        each = zip(ctx.layers, grads, ups, inner.split(ctx.ranks, 1), down.split(ctx.ranks, 1), strict=True)
        for (weight, _, scale), grad, up, part, part_down in each:
            torch.mm(grad, up, out=part_down).mul_(scale)
            to_b.append((grad.t() @ part).to(trained[1].dtype).mul_(scale))
            if ctx.needs_input_grad[0]:
                grad_x = _product(grad, _as(weight, x.dtype), into=grad_x)
        if grad_x is not None:
            grad_x = grad_x.addmm_(down, low).view(x.shape)
        to_a = (down.t() @ rows).split(ctx.ranks)
        found = [grad for pair in zip(to_a, to_b, strict=True) for grad in pair]
        return grad_x, None, *(grad.to(of.dtype) for grad, of in zip(found, trained, strict=True))


def _factors(trained: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The A of all layers below one another, and each B."""
    return torch.cat(trained[::2]).to(dtype), [b.to(dtype) for b in trained[1::2]]


def _product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, into: torch.Tensor | None = None
) -> torch.Tensor:
    """rows @ weight, plus a bias or added to what is in `into`."""
    if not _halved(rows, weight):
        if into is not None:
            return into.addmm_(rows, weight)
        return rows @ weight if bias is None else torch.addmm(bias.to(rows.dtype), rows, weight)
    out = rows.new_empty(len(rows), weight.shape[1]) if into is None else into
    for half, part in zip(rows.chunk(2), out.chunk(2), strict=True):
        if into is not None:
            part.addmm_(half, weight)
        elif bias is None:
            torch.mm(half, weight, out=part)
        else:
            torch.addmm(bias.to(rows.dtype), half, weight, out=part)
    return out


def _halved(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product in bf16 is faster in two halves of its rows.

    Of two threads, oneDNN (3.12) uses one for a result of 512 to 1,024 columns with as many rows or up to twice as
    many. Each half, in multiples of 32 rows, gets both: 1.3 to 1.7 times the rate.
    """
    count, columns = len(rows), weight.shape[1]
    narrow = 512 <= columns <= 1024 and columns <= count < 2 * columns and count % 64 == 0
    return narrow and rows.dtype == torch.bfloat16 and torch.get_num_threads() == 2


def _as(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype) if isinstance(weight, torch.Tensor) else weight()


class RMSNorm(Function):
    """y = w x / sqrt(mean(x²) + eps) with w frozen (Zhang and Sennrich 2019); mean and quotient in fp32.

    Each row is a channel of torch's batch norm with mean 0 and that mean as its variance, forward; backward, it is a
    row of weight normalization, v g / |v|, whose kernel takes sqrt(mean(x²) + eps) times g for the length. Both read
    a row once and widen it in registers.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        squares = torch.linalg.vector_norm(rows, dim=-1, dtype=wide).square_().div_(x.shape[-1])
        zeros = torch.zeros_like(squares)
        out = torch.batch_norm(rows[None], None, None, zeros, squares, False, 0.0, eps, False).view(x.shape)
        ctx.save_for_backward(rows, squares.add_(eps).sqrt_(), weight)
        return out.mul_(weight) if out.dtype == weight.dtype else weight * out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        rows, size, weight = ctx.saved_tensors
        shape, grad = grad.shape, (grad * weight).to(rows.dtype).reshape(rows.shape)
        length = rows.new_full((len(rows), 1), rows.shape[-1] ** 0.5)
        sizes = size[:, None] * length
        out, _ = torch.ops.aten._weight_norm_interface_backward(grad, rows, length, sizes, 0)
        return out.view(shape), None, None


class Gate(Function):
    """y = silu(gate) * up (Shazeer 2020): silu(gate) is computed again in the backward and not kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        to_up = torch.nn.functional.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), to_up


class Rotary(Function):
    """Each pair (x, y) of a head's two halves turned by its angle (Su et al. 2021): x cos - y sin, y cos + x sin.

    x (rows, heads, tokens, size), cos and sin (rows or 1, 1, tokens, size). The result lies in memory as attention
    reads it, the gradient as the product before it does.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, cos.dtype))
        (x1, x2), (sin1, sin2), (out1, out2) = (t.chunk(2, dim=-1) for t in (x, sin, out))
        torch.mul(x, cos, out=out)
        out1.addcmul_(x2, sin1, value=-1)
        out2.addcmul_(x1, sin2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        out = grad.new_empty(grad.transpose(1, 2).shape).transpose(1, 2)
        (grad1, grad2), (sin1, sin2), (out1, out2) = (t.chunk(2, dim=-1) for t in (grad, sin, out))
        torch.mul(grad, cos, out=out)
        out1.addcmul_(grad2, sin2)
        out2.addcmul_(grad1, sin1, value=-1)
        return out, None, None


class Attention(Function):
    """softmax(q k' s + mask) v; the queries of a group are rows of one product with their shared key.

    q (rows, heads, tokens, size), k and v (rows, groups, reads, size) of as many tokens or more, mask (rows or 1, 1,
    tokens, reads).
    """

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
        asked, read = q.shape, k.shape
        (rows, _, tokens, size), (groups, reads) = asked, read[1:3]
        q, k, v = q.reshape(rows * groups, -1, size), k.reshape(-1, reads, size), v.reshape(-1, reads, size)
        scores = q.new_empty(*q.shape[:2], reads)
        if mask is not None:
            scores.view(rows, groups, -1, tokens, reads).copy_(mask[:, None])
        scores.baddbmm_(q, k.transpose(1, 2), beta=int(mask is not None), alpha=scale)
        wide = torch.promote_types(q.dtype, torch.float32)  # torch's softmax of bf16 takes up to twice as long
        shares = torch.softmax(scores.to(wide), dim=-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, shares)
        ctx.scale, ctx.asked, ctx.read = scale, asked, read
        return torch.bmm(shares, v).view(asked)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, shares = ctx.saved_tensors
        grad = grad.reshape(q.shape)
        to_v = torch.bmm(shares.transpose(1, 2), grad)
        to_scores = torch.bmm(grad, v.transpose(1, 2))
        to_scores = torch.ops.aten._softmax_backward_data(to_scores, shares, -1, shares.dtype)
        to_q = torch.baddbmm(q, to_scores, k, beta=0, alpha=ctx.scale)
        to_k = torch.baddbmm(k, to_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale)
        return to_q.view(ctx.asked), to_k.view(ctx.read), to_v.view(ctx.read), None, None


class Nats(Function):
    """-log softmax(h W')[target] for each row of h (positions, hidden) and W (vocabulary, hidden) frozen.

    The gradient, (softmax - one hot) W, comes at once, while a few positions' scores are there.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = weight.to(hidden.dtype)
        found = torch.empty(len(targets), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else hidden[:0]
        for at in range(0, len(targets), LOSS_ROWS):
            rows = slice(at, at + LOSS_ROWS)
            told = torch.log_softmax(hidden[rows] @ weight.t(), dim=-1, dtype=torch.float32)
            found[rows] = -told.gather(1, targets[rows, None]).squeeze(1)
            if len(gradient):
                shares = told.exp_()
                shares.scatter_add_(1, targets[rows, None], shares.new_full((len(shares), 1), -1.0))
                torch.matmul(shares.to(hidden.dtype), weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad[:, None]).to(gradient.dtype), None, None
