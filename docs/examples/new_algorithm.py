"""Best against worst: of continuations of one prefix the best is a target, the worst a counter-example."""

from dataclasses import dataclass, replace

import gymnasium
import torch
import tyro

from reelgym import Stack, StreamState, generate_chunk, stream_keys


@dataclass
class Args:
    updates: int = 20
    prompts: int = 4
    group: int = 8
    learning_rate: float = 1e-4
    stack: str = "tiny"


def main(args: Args) -> list[float]:
    """Train; returns, for every update, what a continuation earned on average, summed over chunks."""
    streams = args.prompts * args.group
    envs = gymnasium.make_vec("reelgym/StreamGen-v0", streams, stack=args.stack, autoreset_mode="Disabled")
    generator = Stack.load(args.stack).student()
    optimizer = torch.optim.AdamW(generator.model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    torch.manual_seed(0)
    first, sigma, history = torch.arange(0, streams, args.group), generator.sigmas[-1], []
    for update in range(args.updates):
        scripts = [row for row in envs.prompts(args.prompts, update)[1] for _ in range(args.group)]
        seen, _ = envs.reset(options={"scripts": scripts})
        state, total = StreamState.start(stream_keys(update, streams)), 0.0
        for _ in range(envs.layout.chunks):
            prompt, prefix = seen["prompt"], state
            chunk, _, state = generate_chunk(generator, prefix, prompt)
            seen, reward, *_ = envs.step(chunk)  # of the window that ends with the chunk
            best, worst = (first + score.view(-1, args.group).argmax(1) for score in (reward, -reward))
            pair = torch.cat((best, worst))
            noisy = (1 - sigma) * chunk[pair] + sigma * torch.randn_like(chunk[best]).repeat(2, 1, 1, 1, 1)
            x0 = generator.denoise(noisy, sigma, prompt[pair], prefix.take(pair).cache)
            good, bad = (x0 - chunk[pair]).square().mean((1, 2, 3, 4)).chunk(2)
            (good - bad).mean().backward()
            kept = best.repeat_interleave(args.group)  # all go on from the best of their group, with noise of their own
            envs.state, state = envs.state.take(kept), replace(state.take(kept), keys=state.keys)
            total += float(reward.mean())
        optimizer.step()
        optimizer.zero_grad()
        history.append(total)
        print(f"update {update + 1}: return {total:.4f}", flush=True)
    return history


if __name__ == "__main__":
    main(tyro.cli(Args))
