"""How a batch becomes updates of the blocks: greedy, Features Replay, BlockProp."""
