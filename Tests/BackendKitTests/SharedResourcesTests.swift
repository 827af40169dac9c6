// SPDX-License-Identifier: Apache-2.0

import BackendKit
import Testing

/// Resources that the backends of one program share.
struct SharedResourcesTests {
    private final class Library {}
    private final class OtherLibrary {}

    let resources = SharedResources()

    @Test func `a resource is made once for each type`() {
        let library = resources.resource { Library() }
        #expect(resources.resource { Library() } === library)
        let other = resources.resource { OtherLibrary() }
        #expect(resources.resource { OtherLibrary() } === other)
    }

    @Test func `a resource that no backend keeps is made again`() {
        weak var first: Library?
        do {
            let library = resources.resource { Library() }
            first = library
        }
        #expect(first == nil)
        var count = 0
        let library = resources.resource {
            count += 1
            return Library()
        }
        #expect(count == 1)
        withExtendedLifetime(library) {}
    }

    @Test func `a resource that cannot be made is not kept`() {
        #expect(throws: BackendError.self) {
            try resources.resource { () throws(BackendError) -> Library in
                throw BackendError("no library")
            }
        }
        _ = resources.resource { Library() }
    }
}
