// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Platform

/// The bytes that a control client has sent and that have not been executed yet, as lines with the
/// descriptors that came with them.
struct ControlLines {
    /// A line without its line feed.
    struct Line {
        let bytes: [UInt8]
        fileprivate let descriptors: MessageDescriptors?
    }

    private static let lineFeed = UInt8(ascii: "\n")

    private var bytes: [UInt8] = []
    /// The number of bytes that ``next()`` has returned as lines; ``compact()`` removes them.
    private var consumed = 0
    /// The offset from which to search for the next line feed.
    private var scanned = 0
    /// The descriptors of lines in `bytes`, in the order of the lines.
    private var descriptors: [MessageDescriptors] = []

    var isEmpty: Bool { bytes.isEmpty }

    /// The number of bytes that may still be received, up to the longest line and its line feed.
    var room: Int { ServiceLimits.controlLine + 1 - bytes.count }

    /// Whether the bytes begin a line that is longer than a line may be.
    var isOverlong: Bool {
        bytes.count > ServiceLimits.controlLine && !bytes.contains(Self.lineFeed)
    }

    /// Appends bytes that one `recvmsg` has returned, at least one, and their descriptors.
    ///
    /// Descriptors belong to the line of the last byte that they came with: the kernel may return
    /// earlier bytes with those of a message with descriptors, but never later ones.
    mutating func append(_ chunk: [UInt8], _ received: consuming DescriptorList) {
        bytes += chunk
        guard !received.isEmpty || received.isTruncated else { return }
        let start = bytes.dropLast().lastIndex(of: Self.lineFeed).map { $0 + 1 } ?? 0
        guard let same = descriptors.last, same.offset == start else {
            return descriptors.append(MessageDescriptors(received, at: start))
        }
        // A line with more than one descriptor is refused, so none of them is kept.
        same.list = DescriptorList()
        same.list.isTruncated = true
    }

    /// Returns the next complete line, or `nil` if there is none.
    mutating func next() -> Line? {
        guard let end = bytes[scanned...].firstIndex(of: Self.lineFeed) else {
            scanned = bytes.count
            return nil
        }
        let line = Array(bytes[consumed..<end])
        consumed = end + 1
        scanned = consumed
        var taken: MessageDescriptors?
        if let first = descriptors.first, first.offset <= end { taken = descriptors.removeFirst() }
        return Line(bytes: line, descriptors: taken)
    }

    /// Removes the lines that ``next()`` has returned.
    mutating func compact() {
        bytes.removeFirst(consumed)
        scanned -= consumed
        for message in descriptors { message.offset -= consumed }
        consumed = 0
    }

    /// Removes everything and closes the descriptors.
    mutating func removeAll() { self = ControlLines() }
}

extension ControlLines.Line {
    /// The one descriptor that came with a request, or `nil`.
    ///
    /// - Throws: if more came, or the request takes none.
    func descriptor(
        for request: ControlSocketRequest
    ) throws(ControlError) -> ReceivedDescriptor? {
        guard let descriptors else { return nil }
        guard !descriptors.list.isTruncated, descriptors.list.count == 1 else {
            throw ControlError(
                .badRequest, "more than one descriptor came with the request")
        }
        guard request.takesDescriptor else {
            throw ControlError(.badRequest, "a descriptor came with a request that needs none")
        }
        guard let descriptor = descriptors.list.take(0) else { return nil }
        return ReceivedDescriptor(descriptor)
    }
}
