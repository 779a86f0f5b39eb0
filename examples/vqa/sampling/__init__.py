"""From a file to what a model looks at: frames, patches, scales, augmentation."""
