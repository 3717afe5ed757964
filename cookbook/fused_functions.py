"""The formulas of `cookbook.fused` with their gradients written out: fewer passes over memory than by autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LOSS_ROWS = 256  # positions whose scores over the vocabulary are held in fp32 at once


class Lora(Function):
    """y = x W' + bias + s (x A') B': W (out, in) frozen, A (rank, in) and B (out, rank) trained (Hu et al. 2021).

    `weight` is W, or a function that unpacks it: then it is unpacked for each product and not kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        w, low, up = _as(weight, x.dtype), a.to(x.dtype), b.to(x.dtype)
        inner = rows @ low.t()
        out = rows @ w.t() if bias is None else torch.addmm(bias.to(x.dtype), rows, w.t())
        out.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(x, inner, a, b)
        ctx.weight, ctx.scale = weight, scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, inner, a, b = ctx.saved_tensors
        grad = grad.to(x.dtype).reshape(-1, grad.shape[-1])
        down = grad @ b.to(x.dtype)
        down *= ctx.scale
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ _as(ctx.weight, x.dtype)).addmm_(down, a.to(x.dtype)).view(x.shape)
        if ctx.needs_input_grad[3]:
            grad_a = (down.t() @ x.reshape(-1, x.shape[-1])).to(a.dtype)
        if ctx.needs_input_grad[4]:
            grad_b = (grad.t() @ inner).to(b.dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


def _as(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype) if isinstance(weight, torch.Tensor) else weight()


class RMSNorm(Function):
    """y = w x / sqrt(mean(x²) + eps) with w frozen (Zhang and Sennrich 2019); mean and quotient in fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(torch.float32, copy=True)
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return weight * wide.mul_(inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, inverse, weight = ctx.saved_tensors
        grad = (grad * weight).float()
        shared = torch.linalg.vecdot(grad, x.float()).unsqueeze(-1)
        shared.mul_(inverse.square()).div_(-x.shape[-1])
        return torch.addcmul(grad, x, shared).mul_(inverse).to(x.dtype), None, None


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
        out1 -= x2 * sin1
        out2 += x1 * sin2
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        out = grad.new_empty(grad.transpose(1, 2).shape).transpose(1, 2)
        (grad1, grad2), (sin1, sin2), (out1, out2) = (t.chunk(2, dim=-1) for t in (grad, sin, out))
        torch.mul(grad, cos, out=out)
        out1 += grad2 * sin2
        out2 -= grad1 * sin1
        return out, None, None


class Attention(Function):
    """softmax(q k' s + mask) v; the queries of a group are rows of one product with their shared key.

    q (rows, heads, tokens, size), k and v (rows, groups, tokens, size), mask (rows or 1, 1, tokens, tokens).
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
        shares = torch.softmax(scores, dim=-1)
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
