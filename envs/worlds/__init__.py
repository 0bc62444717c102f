"""ShapeStream, the procedural world: prompts, scenes, a renderer, a camera, scripted fakes and (apart) the oracles."""
