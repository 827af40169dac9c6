// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A way to get a descriptor wrong.
enum DescriptorFault: String, CaseIterable {
    /// The answer ends in the middle.
    case truncated
    /// The length field promises more than there is.
    case overlong
    /// The fields contradict each other and the specification.
    case contradictory

    /// Which descriptor.
    enum Subject: String, CaseIterable {
        case device = "device-descriptor"
        case configuration = "configuration-descriptor"

        var type: DescriptorType { self == .device ? .device : .configuration }
    }

    var effect: String {
        switch self {
        case .truncated: "the first half of the descriptor"
        case .overlong: "a length field that is too large"
        case .contradictory: "fields that contradict each other"
        }
    }

    /// The descriptor as it is sent.
    func apply(to bytes: [UInt8], _ subject: Subject) -> [UInt8] {
        var bytes = bytes
        switch (self, subject) {
        case (.truncated, _): return Array(bytes.prefix(bytes.count / 2))
        case (.overlong, .device):
            bytes.replace(0xff, at: 0)
        case (.overlong, .configuration):
            let length = UInt16(clamping: bytes.count + 1024)
            bytes.replace(UInt8(truncatingIfNeeded: length), at: 2)
            bytes.replace(UInt8(truncatingIfNeeded: length >> 8), at: 3)
        case (.contradictory, .device):
            // bMaxPacketSize0, which is a power of two or the exponent 9, and bNumConfigurations.
            bytes.replace(7, at: 7)
            bytes.replace(0xff, at: 17)
        case (.contradictory, .configuration):
            // bNumInterfaces; bNumEndpoints of each interface; wMaxPacketSize of each endpoint.
            bytes.replace(9, at: 4)
            var place = 0
            while place + 1 < bytes.count, bytes[place] > 1 {
                switch DescriptorType(rawValue: bytes[place + 1]) {
                case .interface: bytes.replace(30, at: place + 4)
                case .endpoint:
                    bytes.replace(0, at: place + 4)
                    bytes.replace(0, at: place + 5)
                default: break
                }
                place += Int(bytes[place])
            }
        }
        return bytes
    }
}

extension [UInt8] {
    fileprivate mutating func replace(_ byte: UInt8, at place: Int) {
        if indices.contains(place) { self[place] = byte }
    }
}
