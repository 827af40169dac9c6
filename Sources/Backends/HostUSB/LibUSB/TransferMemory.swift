// SPDX-License-Identifier: Apache-2.0

/// The backend's own memory for the data of one device's transfers.
///
/// The kernel writes IN data when libusb reaps a request. The controller may have revoked the
/// guest's memory by then, so the kernel writes to a block of this memory. The event loop copies
/// the block to guest memory.
///
/// A block is reused for the next transfer of about its size, so the steady state allocates
/// nothing. A block keeps the bytes of its last use: copy only bytes that the kernel has written.
final class TransferMemory {
    /// Contiguous bytes for one transfer at a time.
    @safe
    final class Block {
        let bytes: UnsafeMutableBufferPointer<UInt8>

        fileprivate init(byteCount: Int) { unsafe bytes = .allocate(capacity: byteCount) }

        deinit { unsafe bytes.deallocate() }
    }

    /// The smallest block has 2^9 bytes.
    private static let smallestExponent = 9

    /// Unused blocks by size: each list holds blocks of twice the bytes of the one before.
    private var unused: [[Block]] = []

    /// The bytes of all unused blocks.
    private(set) var keptBytes = 0

    /// Returns a block of at least `count` bytes, with arbitrary content.
    ///
    /// - Throws: ``LibUSBError/invalidParameter`` if `count` is above
    ///   ``HostUSBLimits/transferBytes``.
    func block(of count: Int) throws(LibUSBError) -> Block {
        guard count <= HostUSBLimits.transferBytes else { throw .invalidParameter }
        guard count <= HostUSBLimits.keptTransferBytes else { return Block(byteCount: count) }
        let index = Self.index(of: count)
        guard unused.indices.contains(index), let block = unused[index].popLast() else {
            return Block(byteCount: 1 << (index + Self.smallestExponent))
        }
        unsafe keptBytes -= block.bytes.count
        return block
    }

    /// Keeps a block for the next transfer, unless it is too large.
    ///
    /// When the kept blocks exceed ``HostUSBLimits/keptBytesPerDevice``, blocks of the size with
    /// the most bytes are freed. So blocks of a new size soon replace those of a size that is no
    /// longer used.
    func recycle(_ block: Block) {
        let count = unsafe block.bytes.count
        guard count <= HostUSBLimits.keptTransferBytes else { return }
        let index = Self.index(of: count)
        while unused.count <= index { unused.append([]) }
        unused[index].append(block)
        keptBytes += count
        while keptBytes > HostUSBLimits.keptBytesPerDevice { freeOne() }
    }

    /// Frees all unused blocks.
    func removeAll() {
        unused = []
        keptBytes = 0
    }

    private func freeOne() {
        let sizes = unused.indices.map { unused[$0].count << ($0 + Self.smallestExponent) }
        guard let index = sizes.indices.max(by: { sizes[$0] < sizes[$1] }),
            let block = unused[index].popLast()
        else { return }
        unsafe keptBytes -= block.bytes.count
    }

    private static func index(of count: Int) -> Int {
        let exponent = Int.bitWidth - max(count - 1, 0).leadingZeroBitCount
        return max(exponent - smallestExponent, 0)
    }
}
