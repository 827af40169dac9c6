// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import FoundationEssentials
internal import Platform

/// A request as a client of the control socket sends it: its fields, and a descriptor if one goes
/// with it.
struct ControlMessage {
    private var fields: [String: ArgumentValue]
    private(set) var descriptor: SharedDescriptor?

    /// A class, because a struct that owns a descriptor cannot be copied.
    final class SharedDescriptor {
        let descriptor: OwnedDescriptor
        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
    }

    /// Creates a request with its fields, without a descriptor.
    init(_ request: String, _ fields: [String: ArgumentValue] = [:]) {
        self.fields = fields
        self.fields["request"] = .text(request)
    }

    /// The value of a field; `nil` if the request does not have it.
    subscript(_ field: String) -> ArgumentValue? {
        get { fields[field] }
        set { fields[field] = newValue }
    }

    /// Adds the descriptor of a file or device node.
    mutating func pass(_ descriptor: consuming OwnedDescriptor) {
        self.descriptor = SharedDescriptor(descriptor)
    }

    /// Sets a field to a device specification. The backend opens what the specification names, and
    /// the descriptor goes with the request.
    mutating func pass(
        _ specification: String, as field: String, from catalog: BackendCatalog
    ) throws {
        let (backend, parsed) = try catalog.resolve(specification)
        if let opened = try backend.open(parsed) {
            self[field] = .text(opened.specification.text)
            pass(try opened.descriptor.duplicate())
        } else {
            self[field] = .text(specification)
        }
    }

    /// The request in JSON, with the line feed.
    var line: [UInt8] {
        get throws {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
            return try Array(encoder.encode(fields)) + [UInt8(ascii: "\n")]
        }
    }
}
