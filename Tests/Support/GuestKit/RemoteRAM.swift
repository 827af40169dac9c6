// SPDX-License-Identifier: Apache-2.0

public import DMA

/// Guest memory that the controller accesses by messages, with faults on demand.
///
/// It counts accesses, fails the one that a test chooses, and can run guest code during an access,
/// as a vCPU runs while the controller waits for a reply.
public final class RemoteRAM: RemoteMemory {
    /// An access by the controller.
    public struct Access: Sendable, Equatable {
        public let address: GuestAddress
        public let count: Int
        public let isWrite: Bool
    }

    private let memory: GuestRAM
    /// The number of accesses, failed ones included.
    public private(set) var accessCount = 0
    /// The number of the access that fails, from 1.
    public var failingAccess: Int?
    /// Whether all later accesses fail, too.
    public var failsForEver = false
    /// Called before each access, which ``accessCount`` already includes.
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
