// SPDX-License-Identifier: Apache-2.0

public import DMA

/// Guest memory that the controller reaches one message at a time, with faults on demand.
///
/// It counts accesses, can fail any of them, and can run the guest's code in the middle of one:
/// a vCPU goes on while the controller waits for an answer.
public final class RemoteRAM: RemoteMemory {
    /// One access of the controller.
    public struct Access: Sendable, Equatable {
        public let address: GuestAddress
        public let count: Int
        public let isWrite: Bool
    }

    private let memory: GuestRAM
    /// Accesses made so far, failed ones included.
    public private(set) var accessCount = 0
    /// The access with this number (from 1) fails.
    public var failingAccess: Int?
    /// All accesses after the failing one fail too.
    public var failsForEver = false
    /// Called before each access, which counts the access that is about to be made.
    public var onAccess: ((Access) -> Void)?
    private var isInside = false

    public init(_ memory: GuestRAM) { self.memory = memory }

    public func read(
        _ bytes: UnsafeMutableRawBufferPointer, at address: GuestAddress
    ) throws(DMAError) {
        try enter(Access(address: address, count: bytes.count, isWrite: false))
        bytes.copyBytes(from: memory.bytes(at: address, count: bytes.count))
    }

    public func write(
        _ bytes: UnsafeRawBufferPointer, at address: GuestAddress
    ) throws(DMAError) {
        try enter(Access(address: address, count: bytes.count, isWrite: true))
        memory.write([UInt8](bytes), at: address)
    }

    private func enter(_ access: Access) throws(DMAError) {
        accessCount += 1
        if !isInside, let onAccess {
            isInside = true
            onAccess(access)
            isInside = false
        }
        guard let failingAccess else { return }
        if accessCount == failingAccess || (failsForEver && accessCount > failingAccess) {
            throw DMAError(.lost, at: access.address, count: access.count)
        }
    }
}
