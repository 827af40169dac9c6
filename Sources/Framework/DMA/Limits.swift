// SPDX-License-Identifier: Apache-2.0

/// The bounds of this module.
public enum DMALimits {
    /// Regions at a time; announced to clients as `max_dma_maps`.
    public static let regions = 65535
}
