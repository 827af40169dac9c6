// SPDX-License-Identifier: Apache-2.0

internal import USB

/// Memory of this process that a transfer uses instead of guest memory: for immediate data, for a
/// split Data Stage, and for guest memory that this process cannot access directly.
@safe
final class StagingMemory {
    let bytes: UnsafeMutableRawBufferPointer
    private let budget: StagingBudget?

    /// Allocates `count` zero bytes.
    init(count: Int) {
        unsafe bytes = .allocate(byteCount: count, alignment: 16)
        unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
        budget = nil
    }

    /// Allocates `count` zero bytes of a budget; `nil` if it has fewer left.
    init?(count: Int, of budget: StagingBudget) {
        guard budget.used + count <= XHCILimits.stagingBytes else { return nil }
        budget.used += count
        self.budget = budget
        unsafe bytes = .allocate(byteCount: count, alignment: 16)
        unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit {
        budget?.used -= unsafe bytes.count
        unsafe bytes.deallocate()
    }
}

/// The staging memory of all transfers together, bounded by ``XHCILimits/stagingBytes``.
final class StagingBudget {
    /// Bytes in use.
    fileprivate(set) var used = 0
}
