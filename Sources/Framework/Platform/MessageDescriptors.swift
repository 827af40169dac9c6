// SPDX-License-Identifier: Apache-2.0

/// The descriptors that arrived with a message, while the message waits in a receive buffer.
///
/// An object, because ``DescriptorList`` is noncopyable and cannot be the element of an array.
public final class MessageDescriptors {
    /// The descriptors.
    public var list: DescriptorList
    /// The offset of the message in the receive buffer, in bytes.
    public var offset: Int

    /// Creates the descriptors of the message at an offset.
    public init(_ list: consuming DescriptorList, at offset: Int) {
        self.list = list
        self.offset = offset
    }
}
